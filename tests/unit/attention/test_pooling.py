"""Tests of pooled and memory-compressed attention. The tests that all attention layers share are in tests/laws."""

from typing import Any

import pytest
import torch

from seqtk.attention import Attention, Role, attentions
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.config.schema import from_dict
from seqtk.utils.errors import UserError

DIM = 8


def build(kind: str, role: Role = Role.ENCODER, **fields: Any) -> Attention:
    config = from_dict(attentions.config_type(kind), {"heads": 2, **fields})
    return attentions.build(config, dim=DIM, role=role).eval().double()


def with_random_weights(layer: Attention) -> Attention:
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return layer


def inputs(role: Role, length: int = 9) -> tuple[torch.Tensor, torch.Tensor | None]:
    x_BTD, memory_BSM = torch.randn(2, 2, length, DIM, dtype=torch.float64)
    return x_BTD, memory_BSM if role is Role.CROSS else None


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_windows_of_one_position_are_softmax_attention(role: Role, pool: str) -> None:
    pooled = build("pooled", role, pool=pool, kernel=1, stride=1)
    softmax = with_random_weights(attentions.build(SoftmaxConfig(heads=2), dim=DIM, role=role).eval().double())
    pooled.load_state_dict(softmax.state_dict(), strict=True)
    x_BTD, memory_BSM = inputs(role)
    torch.testing.assert_close(pooled(x_BTD, memory_BSM), softmax(x_BTD, memory_BSM))


@pytest.mark.parametrize("role", list(Role))
def test_convolution_with_equal_weights_is_mean_pooling(role: Role) -> None:
    """Compares complete windows only. Beyond the end of a row the convolution reads zeros, which the mean ignores."""
    pooled = with_random_weights(build("pooled", role))
    compressed = build("memory_compressed", role)
    weights = torch.eye(DIM // 2).expand(2, 3, -1, -1) / 3
    shared = dict.fromkeys(["pool_key.weight", "pool_value.weight"], weights)
    biases = dict.fromkeys(["pool_key.bias", "pool_value.bias"], torch.zeros(DIM))
    compressed.load_state_dict(pooled.state_dict() | shared | biases)
    x_BTD, memory_BSM = inputs(role)
    torch.testing.assert_close(compressed(x_BTD, memory_BSM), pooled(x_BTD, memory_BSM))


@pytest.mark.parametrize(("kind", "fields"), [("pooled", {}), ("memory_compressed", {}), ("pooled", {"kernel": 5})])
def test_causal_positions_see_complete_windows_only(kind: str, fields: dict[str, Any]) -> None:
    layer = with_random_weights(build(kind, Role.CAUSAL, **fields))
    x_BTD, _ = inputs(Role.CAUSAL)
    changed = x_BTD.clone()
    changed[:, 0] += 1
    reached = (layer(changed)[0] - layer(x_BTD)[0]).abs().amax((0, 2)) > 1e-9
    complete = layer.kernel - 1
    assert reached[1:].tolist() == [t >= complete for t in range(1, 9)]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 3), (4, 2), (5, 1), (1, 1)])
def test_200_decoding_steps_equal_forward(kernel: int, stride: int) -> None:
    layer = with_random_weights(build("pooled", Role.CAUSAL, kernel=kernel, stride=stride))
    x_BTD, _ = inputs(Role.CAUSAL, length=200)
    state, outputs = layer.start(2), []
    for t in range(200):
        y_B1D, state = layer.step(x_BTD[:, t : t + 1], state)
        outputs.append(y_B1D)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x_BTD)[0])
    assert state.dynamic["keys"].shape[2] < kernel
    assert state.dynamic["key"].shape[2] == (200 - kernel) // stride + 1 + (kernel > 1)


def test_parameter_count_equals_its_formula() -> None:
    config = from_dict(attentions.config_type("memory_compressed"), {"heads": 8, "bias": False})
    with torch.device("meta"):
        layer = attentions.build(config, dim=512, role=Role.CAUSAL)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 512**2 + 2 * 512 * 64 * 3 + 2 * 512


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        ("pooled", {"kernel": 2, "stride": 3}, "stride"),
        ("pooled", {"stride": 0}, "stride"),
        ("memory_compressed", {"compression": 0}, "compression"),
    ],
)
def test_invalid_settings_are_refused(kind: str, fields: dict[str, int], key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}="):
        build(kind, **fields)
