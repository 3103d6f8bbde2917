"""fairseq's named sizes of the Transformer, under fairseq's names: `model=transformer_wmt_en_de_big`.

Each is the same class with other defaults, which a recipe may change further. Unlike fairseq's, they keep our default
of one table for source, target and output (`share_embeddings`). Sizes: fairseq's model zoo, after Vaswani et al. 2017,
table 3, and the later settings of tensor2tensor (`_t2t`).
"""

from dataclasses import dataclass

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.models.base import models
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.models.transformer import Transformer, TransformerConfig


def _stacks(*, layers: int = 6, heads: int, dropout: float = 0.0) -> tuple[EncoderConfig, DecoderConfig]:
    attention = (SoftmaxConfig(heads=heads, dropout=dropout),)
    return (
        EncoderConfig(layers=layers, self_attention=attention),
        DecoderConfig(layers=layers, self_attention=attention, cross_attention=attention),
    )


_TINY = _stacks(layers=2, heads=2)
_IWSLT = _stacks(heads=4)
_BIG = _stacks(heads=16)
_BIG_DROPOUT = _stacks(heads=16, dropout=0.1)


@dataclass(frozen=True)
class TransformerTinyConfig(TransformerConfig):
    """2 + 2 blocks of 64 / 64 / 2 heads: for trying things."""

    dim: int = 64
    ffn_dim: int = 64
    encoder: EncoderConfig = _TINY[0]
    decoder: DecoderConfig = _TINY[1]


@dataclass(frozen=True)
class TransformerIwsltDeEnConfig(TransformerConfig):
    """6 + 6 blocks of 512 / 1024 / 4 heads."""

    ffn_dim: int = 1024
    encoder: EncoderConfig = _IWSLT[0]
    decoder: DecoderConfig = _IWSLT[1]


@dataclass(frozen=True)
class TransformerWmtEnDeConfig(TransformerConfig):
    """Transformer base: 6 + 6 blocks of 512 / 2048 / 8 heads."""


@dataclass(frozen=True)
class TransformerVaswaniWmtEnDeBigConfig(TransformerConfig):
    """Transformer big: 6 + 6 blocks of 1024 / 4096 / 16 heads, dropout 0.3."""

    dim: int = 1024
    ffn_dim: int = 4096
    encoder: EncoderConfig = _BIG[0]
    decoder: DecoderConfig = _BIG[1]
    dropout: float = 0.3


@dataclass(frozen=True)
class TransformerVaswaniWmtEnFrBigConfig(TransformerVaswaniWmtEnDeBigConfig):
    """Transformer big with the dropout of 0.1 for a corpus of 36 million pairs."""

    dropout: float = 0.1


@dataclass(frozen=True)
class TransformerWmtEnDeBigConfig(TransformerVaswaniWmtEnDeBigConfig):
    """Transformer big with dropout in the attention weights too."""

    encoder: EncoderConfig = _BIG_DROPOUT[0]
    decoder: DecoderConfig = _BIG_DROPOUT[1]


@dataclass(frozen=True)
class TransformerWmtEnDeBigT2tConfig(TransformerWmtEnDeBigConfig):
    """Transformer big that normalises first, with dropout in its three places."""

    pre_norm: bool = True
    activation_dropout: float = 0.1


for _name, _config in {
    "transformer_tiny": TransformerTinyConfig,
    "transformer_iwslt_de_en": TransformerIwsltDeEnConfig,
    "transformer_wmt_en_de": TransformerWmtEnDeConfig,
    "transformer_vaswani_wmt_en_de_big": TransformerVaswaniWmtEnDeBigConfig,
    "transformer_vaswani_wmt_en_fr_big": TransformerVaswaniWmtEnFrBigConfig,
    "transformer_wmt_en_de_big": TransformerWmtEnDeBigConfig,
    "transformer_wmt_en_de_big_t2t": TransformerWmtEnDeBigT2tConfig,
}.items():
    models.register(_name, _config)(Transformer)
