"""Lightweight and dynamic convolution: chunks, special cases, options and decoding steps.

B batch, T length, D width, H heads, E width of a head, K taps.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention import Role
from seqtk.attention.convolution import (
    CHUNK,
    Convolution,
    DynamicConv,
    DynamicConvConfig,
    LightweightConv,
    LightweightConvConfig,
    band,
)
from seqtk.utils.errors import UserError

DIM, HEADS = 8, 2
KINDS: tuple[tuple[type[Convolution], Any], ...] = (
    (LightweightConv, LightweightConvConfig),
    (DynamicConv, DynamicConvConfig),
)
LENGTHS = (1, CHUNK, 3 * CHUNK // 2, 3 * CHUNK // 2 + 1, 2 * CHUNK, 3 * CHUNK + 5)


def layer_of(
    kind: tuple[type[Convolution], Any], role: Role, *, dtype: torch.dtype = torch.float64, **fields: Any
) -> Convolution:
    layer, config = kind
    torch.manual_seed(0)
    return layer(config(heads=HEADS, **fields), dim=DIM, role=role).to(dtype).eval()


def unfolded(layer: Convolution, x_BTD: Tensor) -> Tensor:
    """Computes the output from the unfolded input, which has one copy of the input for each tap."""
    taps = layer.config.kernel_size
    v_BTD = layer.values(x_BTD)
    if isinstance(layer, DynamicConv):
        kernels_BTHK = layer.taps(layer.kernel(v_BTD))
    else:
        kernels_BTHK = torch.as_tensor(layer.kernel).softmax(-1).expand(*v_BTD.shape[:2], -1, -1)
    padded = functional.pad(v_BTD, (0, 0, layer.before, taps - 1 - layer.before))
    window_BTHEK = padded.unfold(1, taps, 1).reshape(*v_BTD.shape[:2], HEADS, -1, taps)
    y_BTD: Tensor = layer.out((window_BTHEK * kernels_BTHK[:, :, :, None]).sum(-1).flatten(2))
    return y_BTD


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("taps", [1, 2, 31, 3 * CHUNK])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
def test_chunked_convolution_equals_the_unfolded_form(kind: Any, role: Role, taps: int, length: int) -> None:
    layer = layer_of(kind, role, kernel_size=taps)
    x_BTD = torch.randn(2, length, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BTD)[0], unfolded(layer, x_BTD), atol=1e-12, rtol=1e-12)
    in_float32 = layer.float()(x_BTD.float())[0]  # lightweight convolution uses a different kernel on a CPU
    torch.testing.assert_close(in_float32.double(), unfolded(layer.double(), x_BTD), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
def test_kernel_size_one_applies_the_projections_only(kind: Any, role: Role) -> None:
    layer = layer_of(kind, role, kernel_size=1)
    x_BTD = torch.randn(2, 5, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BTD)[0], layer.out(layer.values(x_BTD)))


@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
def test_zero_kernel_logits_give_a_moving_average(role: Role) -> None:
    light, dynamic = (layer_of(kind, role, kernel_size=4) for kind in KINDS)
    torch.nn.init.zeros_(light.kernel)  # type: ignore[arg-type]
    torch.nn.init.zeros_(dynamic.kernel.weight)  # type: ignore[union-attr, arg-type]
    dynamic.value, dynamic.out = light.value, light.out
    x_BTD = torch.randn(2, 6, DIM, dtype=torch.float64)
    torch.testing.assert_close(light(x_BTD)[0], dynamic(x_BTD)[0])
    mean_BD = light.values(x_BTD)[:, :4].mean(1)
    place = 3 if role is Role.CAUSAL else 1
    torch.testing.assert_close(light(x_BTD)[0][:, place], light.out(mean_BD))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("role", "taps", "seen"),
    [
        (Role.ENCODER, 3, (4, 5, 6)),
        (Role.ENCODER, 4, (4, 5, 6, 7)),
        (Role.CAUSAL, 3, (3, 4, 5)),
        (Role.CAUSAL, 4, (2, 3, 4, 5)),
    ],
)
def test_output_depends_on_its_window_only(kind: Any, role: Role, taps: int, seen: tuple[int, ...]) -> None:
    layer = layer_of(kind, role, kernel_size=taps)
    x_BTD = torch.randn(1, 10, DIM, dtype=torch.float64, requires_grad=True)
    layer(x_BTD)[0][0, 5].sum().backward()
    assert x_BTD.grad is not None
    assert tuple(x_BTD.grad[0].any(-1).nonzero().flatten().tolist()) == seen


def test_each_head_has_adjacent_channels() -> None:
    layer = layer_of(KINDS[0], Role.CAUSAL, kernel_size=2, weight_softmax=False, glu=False, bias=False)
    with torch.no_grad():
        layer.value.weight.copy_(torch.eye(DIM))
        layer.out.weight.copy_(torch.eye(DIM))
        layer.kernel.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # type: ignore[operator, union-attr]
    x_BTD = torch.randn(1, 3, DIM, dtype=torch.float64)
    expected = x_BTD.clone()
    expected[..., DIM // 2 :] = functional.pad(x_BTD[:, :-1, DIM // 2 :], (0, 0, 1, 0))
    torch.testing.assert_close(layer(x_BTD)[0], expected)


def test_band_turns_kernels_into_a_band_matrix() -> None:
    kernels_CK = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert band(kernels_CK).tolist() == [[1, 2, 0, 0], [0, 3, 4, 0], [0, 0, 5, 6]]


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_steps_equal_forward_with_constant_state(kind: Any) -> None:
    layer = layer_of(kind, Role.CAUSAL, kernel_size=5, dtype=torch.float32)
    x_BTD = torch.randn(2, 200, DIM)
    state = layer.start(2)
    with torch.no_grad():
        expected = layer(x_BTD)[0]
        for t in range(200):
            y_B1D, state = layer.step(x_BTD[:, t : t + 1], state)
            torch.testing.assert_close(y_B1D[:, 0], expected[:, t], atol=1e-5, rtol=1e-5)
            assert state.dynamic["past"].shape == (2, 4, DIM)


@pytest.mark.slow  # tracing
@pytest.mark.parametrize("kind", KINDS)
def test_convolution_compiles_into_one_graph(kind: Any) -> None:
    layer = layer_of(kind, Role.CAUSAL, kernel_size=7, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for length in (5, 2 * CHUNK + 3):
        x_BTD = torch.randn(2, length, DIM)
        torch.testing.assert_close(compiled(x_BTD)[0], layer(x_BTD)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_input_dropout_acts_in_training_only(kind: Any) -> None:
    layer = layer_of(kind, Role.ENCODER, kernel_size=1, input_dropout=0.5, glu=False, bias=False)
    x_BTD = torch.ones(1, 50, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BTD)[0], layer.out(layer.value(x_BTD)))
    layer.train()
    assert len(layer(x_BTD)[0][0].unique(dim=0)) > 10


def test_dropout_acts_on_kernel_weights() -> None:
    x_BTD = torch.ones(2, 60, DIM, dtype=torch.float64)
    for kind, most in zip(KINDS, (1, 1000), strict=True):
        layer = layer_of(kind, Role.CAUSAL, kernel_size=4, dropout=0.5).train()
        torch.nn.init.normal_(layer.get_parameter("kernel" if kind is KINDS[0] else "kernel.weight"))
        outputs = layer(x_BTD)[0][:, 4:].flatten(0, 1).round(decimals=10).unique(dim=0)
        assert len(outputs) == 1 if most == 1 else len(outputs) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_cross_attention_is_refused(kind: Any) -> None:
    with pytest.raises(UserError, match="cannot be used as cross-attention"):
        layer_of(kind, Role.CROSS)
