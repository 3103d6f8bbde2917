"""Tests of FNet. The tests that all attention layers share are in tests/laws."""

import pytest
import torch

from seqtk.attention import Role
from seqtk.attention.fnet import FNet, FNetConfig
from seqtk.utils.errors import UserError


def build(**fields: bool) -> FNet:
    return FNet(FNetConfig(**fields), dim=8, role=Role.ENCODER)


def test_fnet_has_no_parameters_and_no_buffers() -> None:
    assert not build().state_dict()
    assert not list(build().parameters())


@pytest.mark.parametrize("lengths", [[1], [2, 1], [7, 3], [8, 5, 1], [9, 8, 2]])
def test_each_row_equals_fft2_without_its_padding(lengths: list[int]) -> None:
    x_BTD = torch.randn(len(lengths), lengths[0], 8, dtype=torch.float64)
    pad_BT = torch.arange(lengths[0]) >= torch.tensor(lengths)[:, None]
    y_BTD = build(orthonormal=False)(x_BTD, pad_BS=pad_BT)[0]
    for x_TD, y_TD, length in zip(x_BTD, y_BTD, lengths, strict=True):
        torch.testing.assert_close(y_TD[:length], torch.fft.fft2(x_TD[:length]).real)


def test_long_rows_are_exact_in_float32() -> None:
    """The squares of the last positions have more digits than a float32."""
    x_BTD = torch.randn(1, 6001, 8)
    exact_TD = build()(x_BTD[:, :6000].double())[0][0]
    y_TD = build()(x_BTD, pad_BS=torch.arange(6001)[None] == 6000)[0][0, :6000]
    assert (y_TD - exact_TD).abs().max() < 1e-5


def test_orthonormal_transform_keeps_the_scale() -> None:
    x_BTD = torch.randn(4, 64, 8)
    scaled = build()(x_BTD)[0]
    assert 0.6 < scaled.norm() / x_BTD.norm() < 0.8  # the real part has half of the power
    torch.testing.assert_close(build(orthonormal=False)(x_BTD)[0], scaled * (64 * 8) ** 0.5)


def test_causal_self_attention_is_refused() -> None:
    with pytest.raises(UserError, match="no causal form"):
        FNet(FNetConfig(), dim=8, role=Role.CAUSAL)
