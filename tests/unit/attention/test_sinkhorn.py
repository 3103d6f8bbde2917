"""Sinkhorn attention: its limits, its normalisation, its noise, its memory, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Role
from seqtk.attention.sinkhorn import SinkhornAttention, SinkhornConfig, normalised
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.windows import LocalBlockConfig
from seqtk.testing.memory import largest_tensor
from seqtk.testing.subject import close
from seqtk.utils.errors import UserError
from tests.unit.attention.test_windows import build, mutual

X_BTD, PAD_BS = torch.randn(2, 20, 8, dtype=torch.float64), torch.arange(20) >= torch.tensor([[20], [13]])


class Given(SinkhornAttention):
    """Sorts as it is told."""

    matrix_NN: Tensor

    def sorting(self, x_BTD: Tensor, real_BNC: Tensor) -> Tensor:
        present_BN = real_BNC.any(2).double()
        p_B1NN = self.matrix_NN * present_BN[:, None, :, None] * present_BN[:, None, None]
        return p_B1NN.expand(-1, self.heads, -1, -1)


def given(matrix_NN: Tensor, *, like: Any) -> Given:
    layer = Given(like.config, dim=8, role=Role.ENCODER).double().eval()
    layer.load_state_dict(like.state_dict())
    layer.matrix_NN = matrix_NN.double()
    return layer


def test_one_block_is_full_attention() -> None:
    layer = build(SinkhornConfig(heads=2, block=20), Role.ENCODER)
    full = build(SoftmaxConfig(heads=2), Role.ENCODER, like=layer)
    close(layer(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS], full(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS])


def test_the_identity_sorts_each_block_to_itself_which_is_local_attention() -> None:
    layer = given(torch.eye(5), like=build(SinkhornConfig(heads=2, block=4), Role.ENCODER))
    local = build(LocalBlockConfig(heads=2, block=4), Role.ENCODER, like=layer)
    close(layer(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS], local(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS])


def test_a_shift_by_one_block_is_local_attention_with_the_block_before() -> None:
    shift = torch.eye(5).roll(1, 0)
    layer = given(shift, like=build(SinkhornConfig(heads=2, block=4), Role.ENCODER))
    local = build(LocalBlockConfig(heads=2, block=4, back=True), Role.ENCODER, like=layer)
    close(layer(X_BTD)[0][:, 4:], local(X_BTD)[0][:, 4:])


def test_all_blocks_can_be_seen() -> None:
    assert mutual(build(SinkhornConfig(heads=2, block=3), Role.ENCODER), 11).all()


def test_columns_and_rows_sum_to_one_in_the_end_among_what_is_present() -> None:
    present_BN = torch.arange(6) < torch.tensor([[6], [4], [0]])
    p_BHNN = normalised(3 * torch.randn(3, 2, 6, 6, dtype=torch.float64), present_BN, iterations=300)
    expected = present_BN[:, None].double().expand(3, 2, 6)
    close(p_BHNN.sum(-1), expected)
    close(p_BHNN.sum(-2), expected, 1e-3)


def test_a_low_temperature_makes_a_permutation() -> None:
    logits = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    p_NN = normalised(logits / 1e-3, torch.ones(1, 5) > 0, iterations=3000)[0, 0]
    assert torch.equal((p_NN > 0.5).sum(0), torch.ones(5, dtype=torch.long))


def test_training_sorts_with_noise_and_evaluation_without() -> None:
    layer = build(SinkhornConfig(heads=2, block=4), Role.ENCODER)
    expected = layer(X_BTD)[0]
    layer.train()
    assert not torch.allclose(layer(X_BTD)[0], layer(X_BTD)[0])
    close(layer.eval()(X_BTD)[0], expected, 0)


def test_memory_is_that_of_the_blocks() -> None:
    layer = build(SinkhornConfig(heads=2, block=32, max_length=1024), Role.ENCODER)
    assert largest_tensor(layer, 1024) <= min(2 * largest_tensor(layer, 512), 1024 * 1024 / 4)


@pytest.mark.parametrize("field", ["block", "iterations", "temperature", "max_length"])
def test_sizes_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"attention\.{field}=0"):
        build(SinkhornConfig(heads=2, **{field: 0}), Role.ENCODER)
