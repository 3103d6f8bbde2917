"""fairseq's named sizes of its convolutional models, under fairseq's names: `model=lightconv_wmt_en_de_big`.

Each is the Transformer with dynamic convolutions for self-attention, whose kernels grow from block to block. Sizes and
rates are those of fairseq's model zoo, after Wu et al. 2019 (arXiv 1901.10430, section 4). As with the other named
sizes, one table for source, target and output is our default. For lightweight convolutions, name those in a pattern
with the same kernel sizes.
"""

from dataclasses import dataclass
from typing import Any

from seqtk.attention.convolution import DynamicConvConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.models.base import models
from seqtk.models.encoder import EncoderConfig
from seqtk.models.stacks import DecoderConfig, Pattern
from seqtk.models.transformer import Transformer, TransformerConfig

ENCODER_KERNELS = (3, 7, 15, 31, 31, 31, 31)
DECODER_KERNELS = (3, 7, 15, 31, 31, 31)


def _convolutions(sizes: tuple[int, ...], **fields: Any) -> Pattern:
    return tuple(DynamicConvConfig(kernel_size=size, **fields) for size in sizes)


def _encoder(**fields: Any) -> EncoderConfig:
    return EncoderConfig(layers=len(ENCODER_KERNELS), self_attention=_convolutions(ENCODER_KERNELS, **fields))


def _decoder(**fields: Any) -> DecoderConfig:
    """Cross-attention stays dot-product attention; its weights are dropped at the rate of the kernels' taps."""
    return DecoderConfig(
        layers=len(DECODER_KERNELS),
        self_attention=_convolutions(DECODER_KERNELS, **fields),
        cross_attention=(SoftmaxConfig(dropout=fields.get("dropout", 0.0)),),
    )


@dataclass(frozen=True)
class LightconvConfig(TransformerConfig):
    """7 + 6 blocks of 512 / 2048 / 8 heads with dynamic convolutions of 3 to 31 taps."""

    encoder: EncoderConfig = _encoder(input_dropout=0.1)
    decoder: DecoderConfig = _decoder(input_dropout=0.1)


@dataclass(frozen=True)
class LightconvWmtEnDeConfig(LightconvConfig):
    """The same as lightconv."""


@dataclass(frozen=True)
class LightconvIwsltDeEnConfig(LightconvConfig):
    """7 + 6 blocks of 512 / 1024 / 4 heads with dynamic convolutions that are not gated."""

    ffn_dim: int = 1024
    heads: int = 4
    encoder: EncoderConfig = _encoder(glu=False, dropout=0.1)
    decoder: DecoderConfig = _decoder(glu=False, dropout=0.1)


@dataclass(frozen=True)
class LightconvWmtEnDeBigConfig(LightconvConfig):
    """7 + 6 blocks of 1024 / 4096 / 16 heads with dynamic convolutions, dropout 0.3."""

    dim: int = 1024
    ffn_dim: int = 4096
    heads: int = 16
    encoder: EncoderConfig = _encoder(input_dropout=0.1, dropout=0.1)
    decoder: DecoderConfig = _decoder(input_dropout=0.1, dropout=0.1)
    dropout: float = 0.3


@dataclass(frozen=True)
class LightconvWmtEnFrBigConfig(LightconvWmtEnDeBigConfig):
    """The big one with dropout 0.1."""

    dropout: float = 0.1


@dataclass(frozen=True)
class LightconvWmtZhEnBigConfig(LightconvWmtEnDeBigConfig):
    """The big one with dropout 0.2, in kernels and attention weights too."""

    encoder: EncoderConfig = _encoder(input_dropout=0.1, dropout=0.2)
    decoder: DecoderConfig = _decoder(input_dropout=0.1, dropout=0.2)
    dropout: float = 0.2


for _name, _config in {
    "lightconv": LightconvConfig,
    "lightconv_iwslt_de_en": LightconvIwsltDeEnConfig,
    "lightconv_wmt_en_de": LightconvWmtEnDeConfig,
    "lightconv_wmt_en_de_big": LightconvWmtEnDeBigConfig,
    "lightconv_wmt_en_fr_big": LightconvWmtEnFrBigConfig,
    "lightconv_wmt_zh_en_big": LightconvWmtZhEnBigConfig,
}.items():
    models.register(_name, _config)(Transformer)
