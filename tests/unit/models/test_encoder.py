"""Memory tokens and the stem: what they add, and that padding stays out of both."""

import pytest
import torch
from torch import Tensor

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.synthesizer import SynthesizerRandomConfig
from seqtk.models.encoder import Encoder, EncoderConfig
from seqtk.models.stacks import BlockOptions
from seqtk.models.transformer import Transformer, TransformerConfig
from seqtk.utils.errors import UserError

OPTIONS = BlockOptions(
    dim=8, ffn_dim=16, heads=2, activation="relu", dropout=0.0, activation_dropout=0.0, pre_norm=True
)
LENGTHS = torch.tensor([5, 3])


def encoder(**settings: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(layers=2, **settings), options=OPTIONS).double().eval()  # type: ignore[arg-type]


def encoded(encoder: Encoder, x_BSD: Tensor, *, left: bool, width: int) -> list[Tensor]:
    """What comes out at each row's own positions, the rows padded to `width` on one side or the other."""
    padded = torch.full((len(x_BSD), width, x_BSD.shape[2]), 9.0, dtype=torch.float64)
    pad_BS = torch.ones(len(x_BSD), width, dtype=torch.bool)
    starts = [width - length if left else 0 for length in LENGTHS.tolist()]
    for row, (start, length) in enumerate(zip(starts, LENGTHS.tolist(), strict=True)):
        padded[row, start : start + length] = x_BSD[row, :length]
        pad_BS[row, start : start + length] = False
    positions_BS = (~pad_BS).cumsum(1).sub(1).clamp(min=0) if left else None
    y_BSD = encoder(padded, pad_BS=pad_BS, positions_BS=positions_BS)
    return [y_BSD[row, start : start + n] for row, (start, n) in enumerate(zip(starts, LENGTHS.tolist(), strict=True))]


@pytest.mark.parametrize(
    "settings",
    [
        {"memory_tokens": 3},
        {"stem_layers": 2, "stem_kernel_size": 5},
        {
            "memory_tokens": 2,
            "stem_layers": 1,
            "self_attention": (SynthesizerRandomConfig(max_length=12), SoftmaxConfig(positions="rotary")),
        },
    ],
    ids=["memory", "stem", "both"],
)
def test_neither_the_amount_nor_the_side_of_padding_matters(settings: dict[str, object]) -> None:
    layers = encoder(**settings)
    x_BSD = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = [layers(x_BSD[row : row + 1, :n], pad_BS=None)[0] for row, n in enumerate(LENGTHS.tolist())]
    for left in (False, True):
        for width in (5, 8):
            for actual, alone in zip(encoded(layers, x_BSD, left=left, width=width), expected, strict=True):
                torch.testing.assert_close(actual, alone)


def test_memory_tokens_are_read_and_trained() -> None:
    layers = encoder(memory_tokens=3)
    assert sum(p.numel() for p in layers.parameters()) == sum(p.numel() for p in encoder().parameters()) + 3 * 8
    y_BSD = layers(torch.randn(2, 5, 8, dtype=torch.float64), pad_BS=None)
    assert y_BSD.shape == (2, 5, 8)
    y_BSD.square().sum().backward()
    assert layers.memory_ND is not None
    assert layers.memory_ND.grad is not None
    assert layers.memory_ND.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize(("tokens", "longest"), [(3, 9), (12, None)])
def test_memory_tokens_take_room_in_layers_that_have_a_limit(tokens: int, longest: int | None) -> None:
    limited = EncoderConfig(layers=1, memory_tokens=tokens, self_attention=(SynthesizerRandomConfig(max_length=12),))
    config = TransformerConfig(dim=8, ffn_dim=16, heads=2, encoder=limited)
    if longest is not None:
        assert Transformer(config, source_vocabulary=9, target_vocabulary=9).max_source_length == longest
        return
    with pytest.raises(UserError, match="leave no room"):
        Transformer(config, source_vocabulary=9, target_vocabulary=9)


def test_a_stem_sees_its_neighbourhood_and_no_more() -> None:
    stem = encoder(stem_layers=2, stem_kernel_size=3).stem
    assert stem is not None
    x_BTD = torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stem(x_BTD, pad_BT=None)[0, 4].sum(), x_BTD)
    assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("settings", [{"memory_tokens": -1}, {"stem_layers": 1, "stem_kernel_size": 4}])
def test_impossible_ones_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError):
        encoder(**settings)
