"""Attention Free Transformers: special cases, numerical stability, cumulative sums and decoding steps."""

import pytest
import torch
from torch import Tensor

from seqtk.attention import Attention, AttentionConfig, Role, attentions
from seqtk.attention.aft import AftFullConfig, AftLocalConfig, AftSimpleConfig
from seqtk.ops.aft import LogSumExpAccumulator, accumulate_causal, cumulative

DIM = 8
SELF = [Role.ENCODER, Role.CAUSAL]


def build(config: AttentionConfig, role: Role, *, like: Attention | None = None) -> Attention:
    layer = attentions.build(config, dim=DIM, role=role).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if like is not None:
        layer.load_state_dict(like.state_dict(), strict=False)
    return layer


def rows(length: int = 37) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([length, length - 5, 1])
    x_BTD = torch.randn(3, length, DIM, dtype=torch.float64)
    return x_BTD, torch.arange(length) >= lengths[:, None]


def assert_same_outputs(first: Attention, second: Attention) -> None:
    x_BTD, pad_BT = rows()
    difference = first(x_BTD, pad_BS=pad_BT)[0] - second(x_BTD, pad_BS=pad_BT)[0]
    assert difference[~pad_BT].abs().max() < 1e-10


@pytest.mark.parametrize("role", SELF)
def test_aft_full_without_position_biases_is_aft_simple(role: Role) -> None:
    full = build(AftFullConfig(max_length=40, rank=3), role)
    torch.nn.init.zeros_(full.get_parameter("position_key"))
    assert_same_outputs(full, build(AftSimpleConfig(), role, like=full))


@pytest.mark.parametrize("role", SELF)
@pytest.mark.parametrize("window", [37, 40, 100])
def test_aft_local_with_a_full_window_is_aft_full(role: Role, window: int) -> None:
    full = build(AftFullConfig(max_length=40, rank=3), role)
    assert_same_outputs(full, build(AftLocalConfig(max_length=40, rank=3, window=window), role, like=full))


@pytest.mark.parametrize("role", SELF)
@pytest.mark.parametrize("window", [1, 5, 12, 36])
def test_aft_local_has_no_bias_outside_the_window(role: Role, window: int) -> None:
    layer = build(AftLocalConfig(max_length=40, rank=3, window=window), role)
    x_BTD, _ = rows()
    key, value = (layer.get_submodule(name)(x_BTD) for name in ("key", "value"))
    bias_TS = (layer.get_parameter("position_query") @ layer.get_parameter("position_key").T)[:37, :37]
    place = torch.arange(37)
    distance_TS = place[:, None] - place
    logits_BTSD = bias_TS.masked_fill(distance_TS.abs() >= window, 0)[..., None] + key[:, None]
    if role is Role.CAUSAL:
        logits_BTSD = logits_BTSD.masked_fill((distance_TS < 0)[..., None], -torch.inf)
    mean_BTD = (logits_BTSD.softmax(2) * value[:, None]).sum(2)
    expected = layer.get_submodule("out")(layer.get_submodule("query")(x_BTD).sigmoid() * mean_BTD)
    torch.testing.assert_close(layer(x_BTD)[0], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 13, 64, 65])
def test_cumulative_sums_equal_direct_sums_at_any_length(length: int) -> None:
    log, mean = torch.randn(2, 2, length, 3, dtype=torch.float64) * 5
    actual = cumulative(LogSumExpAccumulator.of(log, mean))
    for t in range(length):
        torch.testing.assert_close(actual.log[:, t], log[:, : t + 1].logsumexp(1))
        torch.testing.assert_close(actual.mean[:, t], (log[:, : t + 1].softmax(1) * mean[:, : t + 1]).sum(1))
    past = accumulate_causal(torch.ones(length, length, dtype=torch.float64), log, mean)
    torch.testing.assert_close(past.mean, actual.mean)
    torch.testing.assert_close(past.log, actual.log)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
def test_gradients_of_causal_sums_are_correct(length: int) -> None:
    """Compared with finite differences. All rows share the position weights."""
    key, value, older, newer = torch.randn(4, 2, length, 2, dtype=torch.float64).requires_grad_().unbind()
    weight = torch.rand(length, length, dtype=torch.float64, requires_grad=True)

    def past(weight: Tensor, key: Tensor, value: Tensor, older: Tensor, newer: Tensor) -> tuple[Tensor, ...]:
        before = LogSumExpAccumulator.of(older, newer)
        alone, added = accumulate_causal(weight, key, value), accumulate_causal(weight, key, value, before=before)
        return alone.mean, alone.log, added.mean, added.log, cumulative(before).mean, cumulative(before).log

    assert torch.autograd.gradcheck(past, (weight, key, value, older, newer))


@pytest.mark.parametrize("role", SELF)
@pytest.mark.parametrize("window", [5, 8, 100])
def test_float32_equals_float64_for_large_keys_and_biases(role: Role, window: int) -> None:
    """Keys are in the hundreds, and rise and fall within a window. Biases are in the tens."""
    layer = build(AftLocalConfig(max_length=60, rank=3, window=window), role)
    with torch.no_grad():
        layer.get_parameter("position_query").mul_(20)
    x_BTD = torch.randn(2, 60, DIM, dtype=torch.float64) * torch.tensor([1.0, 100, 1, 1, 30, 1]).repeat(10)[:, None]
    expected = layer(x_BTD)[0]
    actual = layer.float()(x_BTD.float())[0]
    assert (actual - expected).norm() < 1e-3 * expected.norm()


CONFIGS = [
    AftSimpleConfig(),
    AftFullConfig(max_length=200, rank=3),
    AftLocalConfig(max_length=200, rank=3, window=9),
]


def named(config: AttentionConfig) -> str:
    return attentions.name_of(type(config))


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_large_key_does_not_change_earlier_outputs(config: AttentionConfig) -> None:
    """In float32, exp(key) would overflow, and each term divided by it would become 0."""
    layer = build(config, Role.CAUSAL).float()
    x_BTD = torch.randn(1, 50, DIM)
    loud = x_BTD.clone()
    loud[:, 30:] *= 1000
    torch.testing.assert_close(layer(loud)[0][:, :30], layer(x_BTD)[0][:, :30])
    x_BTD = loud.requires_grad_()
    layer(x_BTD)[0].sum().backward()
    assert x_BTD.grad is not None
    assert x_BTD.grad.isfinite().all()
    assert layer(x_BTD)[0].isfinite().all()


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_200_decoding_steps_equal_forward(config: AttentionConfig) -> None:
    layer = build(config, Role.CAUSAL)
    x_BTD = torch.randn(2, 200, DIM, dtype=torch.float64)
    state, outputs = layer.start(2), []
    for t in range(200):
        y_B1D, state = layer.step(x_BTD[:, t : t + 1], state)
        outputs.append(y_B1D)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x_BTD)[0], atol=1e-10, rtol=1e-10)
    held = sum(leaf.numel() for leaf in state.dynamic.values() if leaf is not None)
    assert held == {"aft_simple": 2, "aft_full": 2 * 200, "aft_local": 2 * 8 + 2}[named(config)] * 2 * DIM
