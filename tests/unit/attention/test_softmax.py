"""Dot-product attention: options compared with equivalent formulas, and errors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Role
from seqtk.attention.softmax import SoftmaxAttention, SoftmaxConfig
from seqtk.modules.distance_bias import AlibiBias, DistanceBias, T5Bias
from seqtk.ops.distance_bias import alibi_slopes
from seqtk.ops.dot_product import attend
from seqtk.ops.flex import alibi_score, attend_flex, flex_mask
from seqtk.ops.rotary import rotate
from seqtk.utils.errors import UserError
from tests.laws.references.dot_product import slopes, t5_bucket

POSITIONS = ("none", "rotary", "alibi", "t5")


def build(role: Role = Role.ENCODER, *, dim: int = 8, heads: int = 2, **options: Any) -> SoftmaxAttention:
    layer = SoftmaxAttention(SoftmaxConfig(heads=heads, **options), dim=dim, role=role)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()


def test_rotary_products_depend_on_distance_only() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    products = [
        rotate(query, torch.tensor([[t]])).flatten() @ rotate(key, torch.tensor([[t - 3]])).flatten()
        for t in (3, 10, 500)
    ]
    assert torch.allclose(products[0], products[1])
    assert torch.allclose(products[0], products[2])


@pytest.mark.parametrize("positions", POSITIONS)
def test_position_encodings_make_outputs_depend_on_order(positions: Any) -> None:
    layer = build(positions=positions)
    x_BTD = torch.randn(1, 5, 8, dtype=torch.float64)
    order = torch.tensor([2, 0, 1, 4, 3])
    same = torch.allclose(layer(x_BTD)[0][:, order], layer(x_BTD[:, order])[0], atol=1e-10)
    assert same == (positions == "none")


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20])
def test_alibi_slopes_equal_the_authors_code(heads: int) -> None:
    expected = torch.tensor(slopes(heads), dtype=torch.float64)
    torch.testing.assert_close(alibi_slopes(heads, dtype=torch.float64), expected, rtol=1e-14, atol=0)


def test_alibi_slopes_of_8_heads_are_powers_of_a_half() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


@pytest.mark.parametrize("causal", [False, True])
def test_t5_buckets_agree_with_the_paper(causal: bool) -> None:
    """T5's code computes the logarithm in float32. Its rounding changes no bucket."""
    bias = T5Bias(1, causal=causal)
    with torch.no_grad():
        bias.table.copy_(torch.arange(32.0)[:, None])
    distance = torch.arange(-300, 301)
    ours = bias(distance, dtype=torch.float32)[0].int().tolist()
    assert ours == [t5_bucket(d, causal=causal) for d in distance.tolist()]

    buckets = 32 if causal else 16
    far = (-distance).clamp(min=0) if causal else distance.abs()
    offset = 0 if causal else (distance > 0).int() * 16
    log = torch.log(far.float() / (buckets // 2)) / math.log(128 / (buckets // 2)) * (buckets // 2)
    large = (buckets // 2 + log.clamp(min=0).int()).clamp(max=buckets - 1)
    in_float32 = offset + torch.where(far < buckets // 2, far, large)
    assert ours == in_float32.tolist()


@pytest.mark.parametrize("role", list(Role))
def test_as_many_kv_heads_as_heads_is_plain_attention(role: Role) -> None:
    plain, grouped = build(role), build(role, kv_heads=2)
    grouped.load_state_dict(plain.state_dict())
    x_BTD = torch.randn(2, 5, 8, dtype=torch.float64)
    memory = x_BTD.flip(1) if role is Role.CROSS else None
    assert torch.equal(grouped(x_BTD, memory)[0], plain(x_BTD, memory)[0])


@pytest.mark.parametrize("role", [Role.CAUSAL, Role.CROSS])
def test_cache_has_only_the_kv_heads(role: Role) -> None:
    layer = build(role, heads=4, kv_heads=2)
    x_B1D = torch.randn(3, 1, 8, dtype=torch.float64)
    state = layer.start(3, torch.randn(3, 1, 8, dtype=torch.float64) if role is Role.CROSS else None)
    _, state = layer.step(x_B1D, state)
    kept = state.static if role is Role.CROSS else state.dynamic
    assert kept["key"].shape == kept["value"].shape == (3, 2, 1, 2)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("bias_heads", [None, 1, 4])
def test_queries_attend_to_keys_of_their_group(queries: int, bias_heads: int | None) -> None:
    query, key, value = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    bias = None if bias_heads is None else torch.randn(2, bias_heads, queries, 5)
    expected = attend(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), bias=bias)
    torch.testing.assert_close(attend(query, key, value, bias=bias), expected)


def test_qk_norm_makes_logits_independent_of_scale() -> None:
    layer = build(qk_norm=True, bias=False)
    x_BTD = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(1000 * x_BTD)[0] / 1000, layer(x_BTD)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("positions", POSITIONS[1:])
def test_positions_in_cross_attention_are_refused(positions: Any) -> None:
    with pytest.raises(UserError, match=rf"attention\.positions={positions}"):
        build(Role.CROSS, positions=positions)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"kv_heads": 3, "heads": 4}, r"attention\.kv_heads=3"),
        ({"positions": "rotary", "heads": 8}, r"attention\.positions=rotary"),
        ({"backend": "flex", "dim": 32, "dropout": 0.1}, r"attention\.backend=flex .* dropout"),
        ({"backend": "flex", "dim": 32, "positions": "t5"}, r"attention\.backend=flex .* attention\.positions=t5"),
        ({"backend": "flex"}, r"attention\.backend=flex .* at least 16"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        build(**options)


def test_layer_outside_a_model_requires_heads() -> None:
    with pytest.raises(UserError, match="heads"):
        SoftmaxAttention(SoftmaxConfig(), dim=8, role=Role.ENCODER)


def flex_pair(role: Role, positions: Any, device: torch.device) -> tuple[SoftmaxAttention, SoftmaxAttention]:
    """Builds the same grouped-query layer with FlexAttention and with SDPA, in float32."""
    options: dict[str, Any] = {"dim": 64, "heads": 4, "kv_heads": 2, "positions": positions}
    flex, sdpa = build(role, backend="flex", **options), build(role, **options)
    sdpa.load_state_dict(flex.state_dict())
    return flex.float().to(device), sdpa.float().to(device)


def flex_padding(padded: bool, device: torch.device) -> Tensor | None:
    """Returns the padding mask of rows with 7, 3 and 0 real positions, or None."""
    lengths = torch.tensor([[7], [3], [0]])
    return (torch.arange(7) >= lengths).to(device) if padded else None


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("positions", ["none", "alibi"])
@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
def test_flex_attention_equals_sdpa_with_the_same_bias(role: Role, positions: Any, padded: bool) -> None:
    """Runs on a CPU, where FlexAttention is not compiled and has no backward pass."""
    pad_BS = flex_padding(padded, torch.device("cpu"))
    query, key, value = torch.randn(3, 4, 7, 16), torch.randn(3, 2, 7, 16), torch.randn(3, 2, 7, 16)
    score = alibi_score(alibi_slopes(4)) if positions == "alibi" else None
    actual = attend_flex(query, key, value, seen=flex_mask(pad_BS, causal=role is Role.CAUSAL), score=score)

    bias: DistanceBias = AlibiBias(4)
    if positions == "none":
        bias = T5Bias(4, causal=False)  # 0 before training
    expected_bias = bias.among(query, causal=role is Role.CAUSAL, pad_BT=pad_BS)
    torch.testing.assert_close(actual, attend(query, key, value, bias=expected_bias), atol=1e-5, rtol=1e-5)
    if padded:
        assert not actual[2].any()


def test_flex_on_cpu_evaluates_but_does_not_train() -> None:
    flex, sdpa = flex_pair(Role.CAUSAL, "alibi", torch.device("cpu"))
    x_BTD = torch.randn(2, 5, 64)
    assert torch.equal(flex(x_BTD)[0], sdpa(x_BTD)[0])
    with pytest.raises(UserError, match=r"attention\.backend=flex cannot train on cpu"):
        flex.train()(x_BTD)[0]


@pytest.mark.parametrize(
    ("role", "positions"),
    [(role, p) for role in (Role.ENCODER, Role.CAUSAL) for p in ("none", "rotary", "alibi")] + [(Role.CROSS, "none")],
)
def test_flex_and_sdpa_train_equally_on_cuda(role: Role, positions: Any, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("FlexAttention trains on CUDA only")
    for padded in (False, True):
        pad_BS = flex_padding(padded, device)
        x_BTD = torch.randn(3, 7, 64, device=device)
        memory = torch.randn(3, 7, 64, device=device) if role is Role.CROSS else None
        real = torch.ones(3, 7, dtype=torch.bool, device=device)
        if pad_BS is not None and memory is None:
            real = ~pad_BS
        results = []
        for layer in flex_pair(role, positions, device):
            y_BTD = layer.train()(x_BTD, memory, pad_BS=pad_BS)[0][real]
            y_BTD.square().sum().backward()
            results.append([y_BTD, *(p.grad for p in layer.parameters())])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def test_invisible_positions_have_a_bias_of_minus_infinity() -> None:
    bias = T5Bias(2, causal=True)
    torch.nn.init.normal_(bias.table)
    x_BHTE = torch.zeros(2, 2, 6, 4)
    by_distance = bias.among(x_BHTE, causal=True)
    assert by_distance.isinf().sum() == 2 * 15
    padded = bias.among(x_BHTE, causal=True, pad_BT=torch.tensor([[False] * 6, [True] * 6]))
    assert torch.equal(padded[:1], by_distance)
    assert padded[1].isneginf().all()
