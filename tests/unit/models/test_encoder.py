"""Encoders with memory tokens or a convolutional stem: gradients, maximum lengths, errors and padding."""

import pytest
import torch

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.synthesizer import SynthesizerRandomConfig
from seqtk.config.fields import check
from seqtk.models.stacks import BlockOptions, Encoder, EncoderConfig
from seqtk.models.transformer import Transformer, TransformerConfig
from seqtk.utils.errors import UserError

OPTIONS = BlockOptions(
    dim=8, ffn_dim=16, heads=2, activation="relu", dropout=0.0, activation_dropout=0.0, pre_norm=True
)
LENGTHS = torch.tensor([5, 3])


def encoder(**settings: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(layers=2, **settings), options=OPTIONS).double().eval()  # type: ignore[arg-type]


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
def test_outputs_do_not_depend_on_padding(settings: dict[str, object]) -> None:
    layers = encoder(**settings)
    x_BSD = torch.randn(2, 5, 8, dtype=torch.float64)
    for width in (5, 8):
        padded = torch.nn.functional.pad(x_BSD, (0, 0, 0, width - 5), value=9.0)
        y_BSD = layers(padded, pad_BS=torch.arange(width) >= LENGTHS[:, None])
        for row, length in enumerate(LENGTHS.tolist()):
            alone = layers(x_BSD[row : row + 1, :length], pad_BS=None)[0]
            torch.testing.assert_close(y_BSD[row, :length], alone)


def test_memory_tokens_have_gradients() -> None:
    layers = encoder(memory_tokens=3)
    assert sum(p.numel() for p in layers.parameters()) == sum(p.numel() for p in encoder().parameters()) + 3 * 8
    y_BSD = layers(torch.randn(2, 5, 8, dtype=torch.float64), pad_BS=None)
    assert y_BSD.shape == (2, 5, 8)
    y_BSD.square().sum().backward()
    assert layers.memory_ND is not None
    assert layers.memory_ND.grad is not None
    assert layers.memory_ND.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize(("tokens", "longest"), [(3, 9), (12, None)])
def test_memory_tokens_count_toward_max_length(tokens: int, longest: int | None) -> None:
    limited = EncoderConfig(layers=1, memory_tokens=tokens, self_attention=(SynthesizerRandomConfig(max_length=12),))
    config = TransformerConfig(dim=8, ffn_dim=16, heads=2, encoder=limited)
    if longest is not None:
        assert Transformer(config, source_vocabulary=9, target_vocabulary=9).max_source_length == longest
        return
    with pytest.raises(UserError, match="leaves no position"):
        Transformer(config, source_vocabulary=9, target_vocabulary=9)


def test_stem_has_a_limited_receptive_field() -> None:
    stem = encoder(stem_layers=2, stem_kernel_size=3).stem
    assert stem is not None
    x_BTD = torch.randn(1, 9, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stem(x_BTD, pad_BT=None)[0, 4].sum(), x_BTD)
    assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_even_stem_kernel_size_is_refused() -> None:
    with pytest.raises(UserError, match="stem_kernel_size"):
        encoder(stem_layers=1, stem_kernel_size=4)


def test_negative_memory_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="memory_tokens=-1"):
        check(EncoderConfig(memory_tokens=-1))
