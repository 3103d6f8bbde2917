"""Tests of Luna and ConvLuna. The tests that all attention layers share are in tests/laws."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqtk.attention import Attention, AttentionConfig, Role, attentions
from seqtk.attention.convluna import ConvLunaConfig
from seqtk.attention.luna import Luna, LunaConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.models.stacks import BlockOptions, Encoder, EncoderConfig
from seqtk.utils.errors import UserError
from tests.unit.attention.helpers import steps_and_state_sizes

DIM, MEMORY_DIM, SLOTS = 8, 6, 3
LUNA = LunaConfig(heads=2, memory_size=SLOTS)
CONVLUNA = ConvLunaConfig(heads=2, memory_size=SLOTS)
BOTH = pytest.mark.parametrize("config", [LUNA, CONVLUNA], ids=["luna", "convluna"])


def build(config: AttentionConfig, role: Role = Role.ENCODER, *, seed: int = 0) -> Any:
    """Builds the layer in float64 with random weights."""
    torch.manual_seed(seed)
    layer = attentions.build(config, dim=DIM, role=role, memory_dim=MEMORY_DIM if role is Role.CROSS else None)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()


def stack(*pattern: AttentionConfig, layers: int = 3, pre_norm: bool = False) -> Any:
    options = BlockOptions(
        dim=DIM, ffn_dim=16, heads=2, activation="relu", dropout=0.0, activation_dropout=0.0, pre_norm=pre_norm
    )
    torch.manual_seed(0)
    return Encoder(EncoderConfig(layers=layers, self_attention=pattern), options=options).double()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def run(layer: Attention, x_BTD: Tensor, pad_BS: Tensor | None = None) -> Tensor:
    torch.manual_seed(1)
    memory_BSM = draw(*x_BTD.shape[:2], MEMORY_DIM) if layer.role is Role.CROSS else None
    y_BTD: Tensor = layer(x_BTD, memory_BSM, pad_BS=pad_BS)[0]
    return y_BTD


# Memory slots that each layer of an encoder passes to the next.


@BOTH
def test_later_layers_normalize_the_memory_slots(config: LunaConfig) -> None:
    first, second, _ = (block.self_attention for block in stack(config).blocks)
    x_BSD = draw(2, 7, DIM)
    _, carried_BPD = first(x_BSD)
    y_BSD, carried_again_BPD = second(x_BSD, state=carried_BPD)
    slots_BPD = second.carried_norm(carried_BPD)
    for row in range(2):
        alone = build(config)
        alone.load_state_dict(second.state_dict() | {"memory": slots_BPD[row]}, strict=False)
        expected = alone(x_BSD[row : row + 1])
        torch.testing.assert_close((y_BSD[row : row + 1], carried_again_BPD[row : row + 1]), expected)
    assert not torch.allclose(carried_again_BPD, slots_BPD)


@pytest.mark.parametrize("pattern", [[LUNA], [LUNA, SoftmaxConfig(), LUNA], [LUNA, CONVLUNA, LUNA]])
def test_gradients_flow_through_memory_slots_alone(pattern: list[AttentionConfig]) -> None:
    encoder = stack(*pattern)
    x_BSD, carried = draw(2, 7, DIM), None
    for block in encoder.blocks:  # only the slots have a gradient
        x_BSD, carried = block(x_BSD.detach(), pad_BS=None, state=carried)
    x_BSD.square().sum().backward()
    assert encoder.blocks[0].self_attention.memory.grad.any()
    assert encoder.blocks[0].self_attention.query.weight.grad is None  # the outputs are detached


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [
        [LUNA],
        [LUNA, SoftmaxConfig(), LUNA],
        [SoftmaxConfig(), LUNA, CONVLUNA],
        [dataclasses.replace(CONVLUNA, sharing="simplified")],
    ],
)
def test_every_parameter_of_an_encoder_gets_a_gradient(pattern: list[AttentionConfig], pre_norm: bool) -> None:
    """DistributedDataParallel would wait for a gradient that is never computed."""
    encoder = stack(*pattern, pre_norm=pre_norm)
    encoder(draw(2, 7, DIM), pad_BS=None).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    zero = [name for name, p in encoder.named_parameters() if not p.grad.any()]
    assert [name for name in zero if not name.endswith("key.bias")] == []  # softmax does not depend on the bias of keys


def test_only_the_first_encoder_layer_learns_memory_slots() -> None:
    alone = sum(p.numel() for p in build(LUNA).parameters())
    counts = [sum(p.numel() for p in block.self_attention.parameters()) for block in stack(LUNA).blocks]
    assert counts == [alone, alone - SLOTS * DIM + 2 * DIM, alone - SLOTS * DIM + 2 * DIM]
    untied = dataclasses.replace(LUNA, tie_kv=False)
    assert sum(p.numel() for p in stack(untied).parameters()) - sum(
        p.numel() for p in stack(LUNA).parameters()
    ) == 3 * 2 * DIM * (DIM + 1)


@BOTH
def test_encoder_outputs_do_not_depend_on_padding(config: LunaConfig) -> None:
    strided = dataclasses.replace(config, stride=2) if isinstance(config, ConvLunaConfig) else config
    encoder, x_1SD = stack(strided), draw(1, 5, DIM)
    padded = nn.functional.pad(x_1SD, (0, 0, 0, 3), value=9.0)
    pad_1S = nn.functional.pad(torch.zeros(1, 5, dtype=torch.bool), (0, 3), value=True)
    y_1SD = encoder(padded, pad_BS=pad_1S)
    torch.testing.assert_close(y_1SD[:, :5], encoder(x_1SD, pad_BS=None))


@pytest.mark.parametrize(
    "other", [dataclasses.replace(LUNA, memory_size=4), dataclasses.replace(CONVLUNA, memory_size=4)]
)
def test_layers_with_different_memory_sizes_are_refused(other: LunaConfig) -> None:
    with pytest.raises(UserError, match="memory_size"):
        stack(LUNA, other)


def test_every_decoder_layer_learns_memory_slots() -> None:
    for role in (Role.CAUSAL, Role.CROSS):
        assert build(LUNA, role).memory is not None


# Special cases that equal other layers.


@pytest.mark.parametrize("tie_kv", [True, False])
@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    "options",
    [{"filter": "none"}, {"filter": "conv"}, {"filter": "max_pool"}, {"filter": "mean_pool"}],
    ids=lambda options: options["filter"],
)
def test_convluna_without_filtering_is_luna(role: Role, tie_kv: bool, options: dict[str, Any]) -> None:
    luna = build(dataclasses.replace(LUNA, tie_kv=tie_kv), role)
    config = dataclasses.replace(
        CONVLUNA, tie_kv=tie_kv, pack_temperature="sqrt", unpack_temperature="sqrt", kernel_size=1, **options
    )
    convluna = build(config, role, seed=1)
    own = {"kernel": torch.ones(2, 1)} if options["filter"] == "conv" else {}
    convluna.load_state_dict(luna.state_dict() | own, strict=True)
    x_BTD, pad_BS = draw(2, 7, DIM), torch.arange(7)[None] >= torch.tensor([[7], [3]])
    torch.testing.assert_close(run(convluna, x_BTD, pad_BS), run(luna, x_BTD, pad_BS))


def test_convolution_with_equal_weights_is_mean_pooling() -> None:
    config = dataclasses.replace(CONVLUNA, kernel_size=3)
    conv, mean = build(config), build(dataclasses.replace(config, filter="mean_pool"))
    conv.kernel.data.fill_(1 / 3)
    x_BHSE = draw(2, 2, 9, 4)
    actual, expected = (layer.filtered(x_BHSE, slice(None), None) for layer in (conv, mean))
    torch.testing.assert_close(actual[:, :, 1:-1], expected[:, :, 1:-1])
    torch.testing.assert_close(actual[:, :, 0] * 3 / 2, expected[:, :, 0])


def test_learned_temperatures_start_at_root_of_head_width() -> None:
    torch.manual_seed(0)
    learned = attentions.build(CONVLUNA, dim=DIM, role=Role.ENCODER).double()
    fixed = build(dataclasses.replace(CONVLUNA, pack_temperature="sqrt", unpack_temperature="sqrt"))
    fixed.load_state_dict({n: p for n, p in learned.state_dict().items() if "temperature" not in n}, strict=True)
    x_BTD = draw(2, 7, DIM)
    torch.testing.assert_close(run(learned, x_BTD), run(fixed, x_BTD), atol=1e-6, rtol=1e-6)
    assert learned.monitored() == pytest.approx({"pack_temperature": 2.0, "unpack_temperature": 2.0})
    assert fixed.monitored() == {}


def test_one_memory_slot_makes_all_outputs_equal() -> None:
    y_BTD = run(build(dataclasses.replace(LUNA, memory_size=1)), draw(1, 5, DIM))
    torch.testing.assert_close(y_BTD, y_BTD[:, :1].expand_as(y_BTD))


# Cost.


def test_tying_keys_and_values_saves_15m_parameters() -> None:
    """RoBERTa-base has 132M parameters tied and 147M untied (README of the authors' code)."""
    layers = (Luna(LunaConfig(heads=12, tie_kv=tie), dim=768, role=Role.ENCODER) for tie in (True, False))
    tied, untied = (sum(p.numel() for p in layer.parameters()) for layer in layers)
    assert 132 + 12 * (untied - tied) / 1e6 == pytest.approx(147, abs=1)


@BOTH
@pytest.mark.parametrize("role", [Role.CAUSAL, Role.CROSS])
def test_decoding_steps_equal_forward_with_constant_state(config: LunaConfig, role: Role) -> None:
    layer, x_BTD = build(config, role), draw(2, 200, DIM)
    torch.manual_seed(1)
    state = layer.start(2, draw(2, 200, MEMORY_DIM) if role is Role.CROSS else None)
    y_BTD, sizes = steps_and_state_sizes(layer, x_BTD, state)
    torch.testing.assert_close(y_BTD, run(layer, x_BTD), atol=1e-10, rtol=1e-10)
    assert len(sizes) == 1


# Errors.


@pytest.mark.parametrize(
    ("role", "fields", "key"),
    [
        (Role.ENCODER, {"memory_size": 0}, "memory_size=0"),
        (Role.ENCODER, {"stride": 0}, "stride=0"),
        (Role.ENCODER, {"kernel_size": 0}, r"^attention\.kernel_size=0"),
        (Role.ENCODER, {"kernel_size": 2, "stride": 3}, "stride=3"),
        (Role.ENCODER, {"stride": 2, "filter": "none"}, "filter=none"),
        (Role.CAUSAL, {"stride": 2}, "stride=2"),
        (Role.CROSS, {"sharing": "qkv"}, "sharing=qkv"),
        (Role.ENCODER, {"sharing": "simplified", "tie_kv": True}, "tie_kv=true"),
    ],
)
def test_invalid_settings_are_refused(role: Role, fields: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        build(dataclasses.replace(CONVLUNA, **fields), role)


def test_cross_attention_of_equal_widths_can_share_weights() -> None:
    config = dataclasses.replace(CONVLUNA, sharing="simplified")
    layer = attentions.build(config, dim=DIM, role=Role.CROSS, memory_dim=DIM)
    assert layer(torch.randn(2, 3, DIM), torch.randn(2, 5, DIM))[0].shape == (2, 3, DIM)
