"""Transformer-XL: segments, memory, distances and errors."""

from typing import Any

import pytest
import torch

from seqtk.attention import Role, attentions
from seqtk.attention.transformer_xl import TransformerXLAttention, TransformerXLConfig
from seqtk.testing.subject import assert_close, steps
from seqtk.utils.errors import UserError


def layer(**fields: Any) -> TransformerXLAttention:
    torch.manual_seed(3)
    made = TransformerXLAttention(TransformerXLConfig(heads=2, **fields), dim=8, role=Role.CAUSAL).double().eval()
    torch.nn.init.normal_(made.content_bias)
    torch.nn.init.normal_(made.distance_bias)
    return made


def random_input(length: int = 13) -> torch.Tensor:
    return torch.randn(2, length, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def in_segments(made: TransformerXLAttention, x_BTD: torch.Tensor, *lengths: int) -> torch.Tensor:
    outputs, memory = [], None
    for segment in x_BTD.split(lengths, dim=1):
        y_BTD, memory = made(segment, state=memory)
        outputs.append(y_BTD)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("memory_length", [1, 3, 5, 50])
@pytest.mark.parametrize("lengths", [(13,), (5, 5, 3), (1, 2, 7, 3), (1,) * 13])
def test_segments_with_memory_equal_the_whole_text(memory_length: int, lengths: tuple[int, ...]) -> None:
    made, x_BTD = layer(memory_length=memory_length), random_input()
    assert_close(in_segments(made, x_BTD, *lengths), made(x_BTD)[0])
    assert_close(steps(made, x_BTD, made.start(2))[0], made(x_BTD)[0])


def test_decoding_steps_equal_forward_with_bounded_state() -> None:
    made, x_BTD = layer(memory_length=16), random_input(200)
    y_BTD, state = steps(made, x_BTD, made.start(2))
    assert_close(y_BTD, made(x_BTD)[0])
    assert state.dynamic["key"].shape[2] == 17


def test_position_sees_memory_length_previous_positions() -> None:
    made, x_BTD = layer(memory_length=3), random_input().requires_grad_()
    y_BTD = made(x_BTD)[0]
    (gradient,) = torch.autograd.grad(y_BTD[:, 9].sum(), x_BTD)
    assert gradient.any(-1).all(0).nonzero().flatten().tolist() == [6, 7, 8, 9]


def test_memory_has_no_gradient_but_projections_do() -> None:
    made, x_BTD = layer(memory_length=4), random_input(8).requires_grad_()
    y_BTD, memory = made(x_BTD[:, :4])
    assert not memory.requires_grad
    y_BTD, _ = made(x_BTD[:, 4:], state=memory)
    gradient, of_values = torch.autograd.grad(y_BTD[:, 0].sum(), [x_BTD, made.value.weight])
    assert not gradient[:, :4].any()
    assert of_values.any()


def test_evaluation_memory_length_applies_in_eval_mode() -> None:
    made, x_BTD = layer(memory_length=2, evaluation_memory_length=6), random_input()
    assert made(x_BTD)[1].shape[1] == 6
    assert_close(in_segments(made, x_BTD, 4, 9), layer(memory_length=6)(x_BTD)[0])
    made.train()
    assert made(x_BTD)[1].shape[1] == 2
    assert_close(in_segments(made, x_BTD, 4, 9), layer(memory_length=2)(x_BTD)[0])


def test_clamp_length_makes_far_distances_equal() -> None:
    made, x_BTD = layer(clamp_length=1), random_input(5)
    swapped = x_BTD[:, [1, 0, 2, 3, 4]]
    assert_close(made(swapped)[0][:, 4], made(x_BTD)[0][:, 4])
    assert not torch.allclose(layer()(swapped)[0][:, 4], layer()(x_BTD)[0][:, 4])


def test_odd_width_is_refused() -> None:
    with pytest.raises(UserError, match="even width"):
        attentions.build(TransformerXLConfig(heads=1), dim=7, role=Role.CAUSAL)
