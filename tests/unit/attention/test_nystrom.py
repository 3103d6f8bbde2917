"""Tests of Nyström attention. The tests that all attention layers share are in tests/laws."""

from typing import Any

import pytest
import torch

from seqtk.attention import Attention, Role, attentions
from seqtk.attention.nystrom import NystromConfig, pseudo_inverse, segment_means
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.config.schema import from_dict
from seqtk.utils.errors import UserError

DIM = 8


def build(**fields: Any) -> Attention:
    config = from_dict(NystromConfig, {"heads": 2, "kernel": 0, **fields})
    return attentions.build(config, dim=DIM, role=Role.ENCODER).eval()


@pytest.mark.parametrize("landmarks", [7, 16])
def test_one_landmark_per_token_is_softmax_attention(landmarks: int) -> None:
    nystrom = build(landmarks=landmarks, iterations=30).double()
    softmax = attentions.build(SoftmaxConfig(heads=2), dim=DIM, role=Role.ENCODER).eval().double()
    for weight in softmax.parameters():
        torch.nn.init.normal_(weight, std=0.6)
    nystrom.load_state_dict(softmax.state_dict())
    x_BTD = torch.randn(3, 7, DIM, dtype=torch.float64)
    pad_BS = torch.arange(7) >= torch.tensor([[7], [4], [1]])
    torch.testing.assert_close(
        nystrom(x_BTD, pad_BS=pad_BS)[0][~pad_BS], softmax(x_BTD, pad_BS=pad_BS)[0][~pad_BS], atol=1e-6, rtol=1e-6
    )


def test_inverse_is_the_pseudo_inverse_of_each_matrix() -> None:
    logits = torch.randn(4, 2, 6, 6, dtype=torch.float64) * torch.tensor([0.5, 1, 2, 3])[:, None, None, None]
    matrices = logits.softmax(-1)
    inverses = pseudo_inverse(matrices, iterations=40)
    torch.testing.assert_close(inverses, torch.linalg.pinv(matrices), atol=1e-6, rtol=1e-6)
    six = pseudo_inverse(matrices, iterations=6)
    for one, of_all in zip(matrices, six, strict=True):
        torch.testing.assert_close(pseudo_inverse(one[None], iterations=6)[0], of_all, atol=1e-12, rtol=1e-12)


def test_inverse_of_zeros_is_zero() -> None:
    matrices = torch.zeros(1, 1, 3, 3, requires_grad=True)
    inverse = pseudo_inverse(matrices, iterations=6)
    inverse.sum().backward()
    assert not inverse.any()
    assert matrices.grad is not None
    assert matrices.grad.isfinite().all()


def test_segments_divide_the_real_length_of_each_row() -> None:
    pad_BT = torch.arange(8) >= torch.tensor([[8], [5], [2], [0]])
    means_BLT = segment_means(pad_BT, 3, like=torch.zeros(4, 8, 1))
    members = [[row.nonzero().flatten().tolist() for row in rows] for rows in means_BLT]
    assert members == [
        [[0, 1, 2], [3, 4, 5], [6, 7]],
        [[0, 1], [2, 3], [4]],
        [[0], [1], []],
        [[], [], []],
    ]
    sums_BL = means_BLT.sum(-1)
    torch.testing.assert_close(sums_BL, (sums_BL > 0).float())


def test_convolution_adds_values_of_its_window() -> None:
    layer = build(kernel=3, landmarks=2)
    weights = layer.get_parameter("query.weight"), layer.get_parameter("conv.weight")
    base = build(kernel=0, landmarks=2)
    base.load_state_dict({name: weight for name, weight in layer.state_dict().items() if name != "conv.weight"})
    torch.nn.init.zeros_(weights[1])
    x_BTD = torch.randn(2, 6, DIM)
    torch.testing.assert_close(layer(x_BTD)[0], base(x_BTD)[0])
    with torch.no_grad():
        weights[1][:, 0, 1, 0] = 1  # each position adds its value
    own = x_BTD @ layer.get_parameter("value.weight").T @ layer.get_parameter("out.weight").T
    torch.testing.assert_close(layer(x_BTD)[0] - base(x_BTD)[0], own)


@pytest.mark.parametrize("fields", [{"landmarks": 0}, {"iterations": 0}, {"kernel": 4}, {"kernel": -1}])
def test_invalid_settings_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(fields))}="):
        build(**fields)
