"""Sinkhorn attention: special cases, normalization, noise and memory."""

from typing import Any

import torch
from torch import Tensor

from seqtk.attention import Role
from seqtk.attention.sinkhorn import SinkhornAttention, SinkhornConfig, sinkhorn
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.windows import LocalBlockConfig
from seqtk.testing.memory import measured
from seqtk.testing.subject import assert_close
from tests.unit.attention.test_windows import build, mutual

X_BTD, PAD_BS = torch.randn(2, 20, 8, dtype=torch.float64), torch.arange(20) >= torch.tensor([[20], [13]])


class FixedSorting(SinkhornAttention):
    """Sinkhorn attention that sorts by a given matrix."""

    matrix_NN: Tensor

    def sorting(self, x_BTD: Tensor, real_BNC: Tensor) -> Tensor:
        present_BN = real_BNC.any(2).double()
        p_B1NN = self.matrix_NN * present_BN[:, None, :, None] * present_BN[:, None, None]
        return p_B1NN.expand(-1, self.heads, -1, -1)


def fixed_sorting(matrix_NN: Tensor, *, like: Any) -> FixedSorting:
    layer = FixedSorting(like.config, dim=8, role=Role.ENCODER).double().eval()
    layer.load_state_dict(like.state_dict())
    layer.matrix_NN = matrix_NN.double()
    return layer


def test_one_block_gives_softmax_attention() -> None:
    layer = build(SinkhornConfig(heads=2, block=20), Role.ENCODER)
    full = build(SoftmaxConfig(heads=2), Role.ENCODER, like=layer)
    assert_close(layer(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS], full(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS])


def test_identity_sorting_gives_local_block_attention() -> None:
    layer = fixed_sorting(torch.eye(5), like=build(SinkhornConfig(heads=2, block=4), Role.ENCODER))
    local = build(LocalBlockConfig(heads=2, block=4), Role.ENCODER, like=layer)
    assert_close(layer(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS], local(X_BTD, pad_BS=PAD_BS)[0][~PAD_BS])


def test_sorting_matrix_can_select_the_previous_block() -> None:
    shift = torch.eye(5).roll(1, 0)
    layer = fixed_sorting(shift, like=build(SinkhornConfig(heads=2, block=4), Role.ENCODER))
    local = build(LocalBlockConfig(heads=2, block=4, back=True), Role.ENCODER, like=layer)
    assert_close(layer(X_BTD)[0][:, 4:], local(X_BTD)[0][:, 4:])


def test_every_position_attends_to_every_position() -> None:
    assert mutual(build(SinkhornConfig(heads=2, block=3), Role.ENCODER), 11).all()


def test_rows_and_columns_of_the_sorting_sum_to_one() -> None:
    present_BN = torch.arange(6) < torch.tensor([[6], [4], [0]])
    p_BHNN = sinkhorn(3 * torch.randn(3, 2, 6, 6, dtype=torch.float64), present_BN, iterations=300)
    expected = present_BN[:, None].double().expand(3, 2, 6)
    assert_close(p_BHNN.sum(-1), expected)
    assert_close(p_BHNN.sum(-2), expected, 1e-3)


def test_low_temperature_gives_a_permutation() -> None:
    logits = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    p_NN = sinkhorn(logits / 1e-3, torch.ones(1, 5) > 0, iterations=3000)[0, 0]
    assert torch.equal((p_NN > 0.5).sum(0), torch.ones(5, dtype=torch.long))


def test_only_training_adds_noise() -> None:
    layer = build(SinkhornConfig(heads=2, block=4), Role.ENCODER)
    expected = layer(X_BTD)[0]
    layer.train()
    assert not torch.allclose(layer(X_BTD)[0], layer(X_BTD)[0])
    assert_close(layer.eval()(X_BTD)[0], expected, 0)


def test_no_tensor_has_all_pairs_of_positions() -> None:
    layer = build(SinkhornConfig(heads=2, block=32, max_length=1024), Role.ENCODER)
    assert measured(layer, 1024).largest <= min(2 * measured(layer, 512).largest, 1024 * 1024 / 4)
