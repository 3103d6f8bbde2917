"""Blocks and windows: special cases, visible positions, decoding steps and state."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention import Attention, AttentionConfig, Role, attentions
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.windows import LocalBlockConfig, LongformerConfig, SlidingWindowConfig
from seqtk.testing.subject import assert_close, steps
from tests.laws.references import cases

SELF = [Role.ENCODER, Role.CAUSAL]
NEAR: list[AttentionConfig] = [
    LocalBlockConfig(heads=2, block=8),
    LocalBlockConfig(heads=2, block=8, back=True),
    SlidingWindowConfig(heads=2, window=8),
    SlidingWindowConfig(heads=2, window=1),
    LongformerConfig(heads=2, window=8, global_tokens=3),
]


def build(config: AttentionConfig, role: Role, *, like: Attention | None = None, dim: int = 8) -> Attention:
    layer = attentions.build(config, dim=dim, role=role).double().eval()
    if like is not None:
        layer.load_state_dict(like.state_dict(), strict=False)
    return layer


def mutual(layer: Attention, length: int) -> Tensor:
    """Returns seen_TS, True where the output at position t depends on the input at position s."""
    x_1TD = torch.randn(1, length, 8, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x_BTD: layer(x_BTD)[0], x_1TD)[0, :, :, 0].abs().sum((1, 3)) > 0


@pytest.mark.parametrize("role", SELF)
@pytest.mark.parametrize(
    "config",
    [LocalBlockConfig(heads=2, block=20), SlidingWindowConfig(heads=2, window=40)],
    ids=lambda c: type(c).__name__,
)
def test_window_over_all_positions_is_softmax_attention(config: AttentionConfig, role: Role) -> None:
    layer = build(config, role)
    x_BTD, pad_BS = torch.randn(2, 20, 8, dtype=torch.float64), torch.arange(20) >= torch.tensor([[20], [13]])
    full = build(SoftmaxConfig(heads=2), role, like=layer)
    assert_close(layer(x_BTD, pad_BS=pad_BS)[0][~pad_BS], full(x_BTD, pad_BS=pad_BS)[0][~pad_BS])


@pytest.mark.parametrize("role", SELF)
def test_longformer_over_all_positions_is_softmax_attention(role: Role) -> None:
    for config in (LongformerConfig(heads=2, window=40), LongformerConfig(heads=2, window=2, global_tokens=20)):
        layer: Any = build(config, role)
        for name in ("query", "key", "value"):
            getattr(layer, f"global_{name}").load_state_dict(getattr(layer, name).state_dict())
        x_BTD = torch.randn(2, 20, 8, dtype=torch.float64)
        assert_close(layer(x_BTD)[0], build(SoftmaxConfig(heads=2), role, like=layer)(x_BTD)[0])


def test_each_query_sees_the_documented_positions() -> None:
    t, s = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    past = s <= t
    for config, role, expected in [
        (LocalBlockConfig(heads=2, block=4), Role.ENCODER, t // 4 == s // 4),
        (LocalBlockConfig(heads=2, block=4, back=True), Role.CAUSAL, past & (t // 4 - s // 4 < 2)),
        (SlidingWindowConfig(heads=2, window=5), Role.ENCODER, (t - s).abs() <= 2),
        (SlidingWindowConfig(heads=2, window=5), Role.CAUSAL, past & (t - s < 5)),
        (LongformerConfig(heads=2, window=3), Role.ENCODER, ((t - s).abs() <= 1) | (s < 1) | (t < 1)),
        (LongformerConfig(heads=2, window=3, global_tokens=2), Role.CAUSAL, past & ((t - s < 3) | (s < 2))),
    ]:
        assert torch.equal(mutual(build(config, role), 11), expected), config


@pytest.mark.parametrize("role", SELF)
@pytest.mark.parametrize("window", [4, 7])
@pytest.mark.parametrize("globals_", [0, 1, 5])
def test_windows_equal_masked_attention_at_every_length(role: Role, window: int, globals_: int) -> None:
    layer: Any = build(
        LongformerConfig(heads=2, window=window, global_tokens=globals_)
        if globals_
        else SlidingWindowConfig(heads=2, window=window),
        role,
    )
    if globals_:
        for name in ("query", "key", "value"):
            getattr(layer, f"global_{name}").load_state_dict(getattr(layer, name).state_dict())
    for length in range(1, 27):
        x_BTD = torch.randn(2, length, 8, dtype=torch.float64)
        t, s = torch.arange(length)[:, None], torch.arange(length)
        seen_TS = (t - s).abs() <= window // 2 if role is Role.ENCODER else (s <= t) & (t - s < window)
        seen_TS |= ((s < globals_) | (t < globals_)) & ((s <= t) | torch.tensor(role is Role.ENCODER))
        heads_BHTE = (layer.split(linear(x_BTD)) for linear in (layer.query, layer.key, layer.value))
        expected = layer.out(layer.join(functional.scaled_dot_product_attention(*heads_BHTE, attn_mask=seen_TS)))
        assert_close(layer(x_BTD)[0], expected)
        padded = layer(
            torch.cat([x_BTD, 9 * torch.randn(2, 9, 8).double()], 1),
            pad_BS=torch.arange(length + 9).expand(2, -1) >= length,
        )[0]
        assert_close(padded[:, :length], expected)


@pytest.mark.parametrize("config", NEAR, ids=str)
def test_200_decoding_steps_equal_forward(config: AttentionConfig) -> None:
    layer = build(config, Role.CAUSAL)
    x_BTD = torch.randn(2, 200, 8, dtype=torch.float64)
    with torch.no_grad():
        assert_close(steps(layer, x_BTD, layer.start(2))[0], layer(x_BTD)[0])


@pytest.mark.parametrize("config", NEAR, ids=str)
def test_state_size_is_constant(config: AttentionConfig) -> None:
    layer = build(config, Role.CAUSAL)
    x_BTD = torch.randn(1, 60, 8, dtype=torch.float64)
    state = layer.start(1)
    for first in range(0, 60, 10):
        state = steps(layer, x_BTD[:, first : first + 10], state)[1]
        kept = [leaf.shape[2] for leaf in state.dynamic.values() if leaf is not None]
        assert max(kept) <= (16 if isinstance(config, LocalBlockConfig) and config.back else 8)


@pytest.mark.parametrize("role", SELF)
def test_longformer_softmax_stays_in_float32_under_autocast(role: Role) -> None:
    """Under bfloat16 autocast, the softmax of the global positions is computed in float32 too."""
    found = [case for case in cases("longformer") if case.law.name == "sums_stay_in_float32"]
    found = [case for case in found if case.subject.role is role]
    assert found
    for case in found:
        replace(case, subject=replace(case.subject, bfloat16_error=1e-6)).check()
