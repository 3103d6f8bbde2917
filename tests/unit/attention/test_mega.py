"""Tests of Mega and its moving average. The tests that all attention layers share are in tests/laws."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Role, attentions
from seqtk.attention.mega import DampedAverage, Mega, MegaConfig
from seqtk.utils.errors import UserError

DIM = 8


def build(role: Role = Role.ENCODER, **fields: Any) -> Mega:
    layer = attentions.build(MegaConfig(**{"averages": 4, **fields}), dim=DIM, role=role).double().eval()
    assert isinstance(layer, Mega)
    torch.nn.init.normal_(layer.scales)
    return layer


def stepped(average: DampedAverage, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the averages, computed one position at a time, and the last state."""
    state, outputs = average.start(len(x_BTD)), []
    for t in range(x_BTD.shape[1]):
        y_B1D, state = average.step(x_BTD[:, t : t + 1], state)
        outputs.append(y_B1D)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 200])
def test_chunked_average_equals_the_recurrence(length: int) -> None:
    average = DampedAverage(3, 4, both_ways=False).double()
    x_BTD = torch.randn(2, length, 3, dtype=torch.float64)
    torch.testing.assert_close(average(x_BTD), stepped(average, x_BTD)[0])


def test_bidirectional_average_sums_both_directions() -> None:
    both = DampedAverage(3, 4, both_ways=True).double()
    x_BTD = torch.randn(2, 70, 3, dtype=torch.float64)
    expected = torch.zeros_like(x_BTD)
    for part, turned in ((slice(0, 2), []), (slice(2, 4), [1])):
        one = DampedAverage(3, 2, both_ways=False).double()
        one.load_state_dict({name: value[:, part] for name, value in both.state_dict().items()})
        expected += one(x_BTD.flip(turned)).flip(turned) / 2**0.5
    torch.testing.assert_close(both(x_BTD), expected)


def test_average_does_not_depend_on_the_future() -> None:
    average = DampedAverage(3, 4, both_ways=False)
    x_BTD = torch.randn(1, 100, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(average(x_BTD)[:, 40].sum(), x_BTD)
    assert not gradient[:, 41:].any()
    assert gradient[:, 40].all()


def test_extreme_damping_gives_the_input_or_its_cumsum() -> None:
    """α δ = 1 gives the newest position and no NaN. α δ = 0 gives the cumulative sum."""
    average = DampedAverage(1, 1, both_ways=False)
    x_BTD = torch.randn(1, 80, 1)
    for damping, expected in ((200.0, x_BTD), (-200.0, x_BTD.cumsum(1))):
        for name, value in {"share": 200.0, "damping": damping, "expand": 1.0, "collapse": 1.0}.items():
            torch.nn.init.constant_(average.get_parameter(name), value)
        y_BTD = average(x_BTD)
        torch.testing.assert_close(y_BTD, expected)
        y_BTD.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in average.parameters())


@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
@pytest.mark.parametrize("chunk", [37, 100])
def test_chunk_as_long_as_the_input_has_no_effect(role: Role, chunk: int) -> None:
    whole, chunked = build(role), build(role, chunk=chunk)
    chunked.load_state_dict(whole.state_dict())
    x_BTD = torch.randn(3, 37, DIM, dtype=torch.float64)
    pad_BT = torch.arange(37) >= torch.tensor([[37], [20], [1]])
    torch.testing.assert_close(chunked(x_BTD, pad_BS=pad_BT), whole(x_BTD, pad_BS=pad_BT))


@pytest.mark.parametrize("chunk", [None, 16])
def test_200_decoding_steps_equal_forward(chunk: int | None) -> None:
    layer = build(Role.CAUSAL, chunk=chunk)
    x_BTD = torch.randn(2, 200, DIM, dtype=torch.float64)
    state, outputs = layer.start(2), []
    for t in range(200):
        y_B1D, state = layer.step(x_BTD[:, t : t + 1], state)
        outputs.append(y_B1D)
        assert state.dynamic["key"].shape[2] <= (chunk or 200)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x_BTD)[0], atol=1e-10, rtol=1e-10)


def test_only_the_moving_average_crosses_chunks() -> None:
    layer = build(Role.CAUSAL, chunk=4)
    x_BTD = torch.randn(1, 12, DIM, dtype=torch.float64)
    other = x_BTD.clone()
    other[:, 0] += 1
    assert not torch.allclose(layer(x_BTD)[0][:, 8:], layer(other)[0][:, 8:])
    torch.nn.init.zeros_(layer.average.collapse)
    torch.testing.assert_close(layer(x_BTD)[0][:, 4:], layer(other)[0][:, 4:])
    assert not torch.allclose(layer(x_BTD)[0][:, 1:4], layer(other)[0][:, 1:4])


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"averages": 3}, r"attention\.averages=3"),
        ({"shared": 3}, r"attention\.shared"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_invalid_settings_are_refused(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        build(**fields)


def test_parameter_count_agrees_with_the_paper() -> None:
    layer = Mega(MegaConfig(), dim=512, role=Role.ENCODER)
    assert round(sum(p.numel() for p in layer.parameters()) / 512**2, 1) == 8.4
