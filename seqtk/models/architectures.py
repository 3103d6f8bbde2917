"""fairseq's named sizes of its Transformers, under fairseq's names: `model=transformer_wmt_en_de_big`.

Each is the same class with other defaults, which a recipe may change further. Unlike fairseq's, they keep our default
of one table for source, target and output (`share_embeddings`, `tie_embeddings`). Sizes: fairseq's model zoo, after
Vaswani et al. 2017, table 3, and the later settings of tensor2tensor (`_t2t`).
"""

from dataclasses import dataclass

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.models.base import models
from seqtk.models.encoder import EncoderConfig
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.models.stacks import DecoderConfig, Pattern
from seqtk.models.transformer import Transformer, TransformerConfig
from seqtk.modules.adaptive_clusters import AdaptiveConfig
from seqtk.modules.feedforward import Activation

_DROPOUT = (SoftmaxConfig(dropout=0.1),)


@dataclass(frozen=True)
class TransformerTinyConfig(TransformerConfig):
    """2 + 2 blocks of 64 / 64 / 2 heads: for trying things."""

    dim: int = 64
    ffn_dim: int = 64
    heads: int = 2
    encoder: EncoderConfig = EncoderConfig(layers=2)
    decoder: DecoderConfig = DecoderConfig(layers=2)


@dataclass(frozen=True)
class TransformerIwsltDeEnConfig(TransformerConfig):
    """6 + 6 blocks of 512 / 1024 / 4 heads."""

    ffn_dim: int = 1024
    heads: int = 4


@dataclass(frozen=True)
class TransformerWmtEnDeConfig(TransformerConfig):
    """Transformer base: 6 + 6 blocks of 512 / 2048 / 8 heads."""


@dataclass(frozen=True)
class TransformerVaswaniWmtEnDeBigConfig(TransformerConfig):
    """Transformer big: 6 + 6 blocks of 1024 / 4096 / 16 heads, dropout 0.3."""

    dim: int = 1024
    ffn_dim: int = 4096
    heads: int = 16
    dropout: float = 0.3


@dataclass(frozen=True)
class TransformerVaswaniWmtEnFrBigConfig(TransformerVaswaniWmtEnDeBigConfig):
    """Transformer big with the dropout of 0.1 for a corpus of 36 million pairs."""

    dropout: float = 0.1


@dataclass(frozen=True)
class TransformerWmtEnDeBigConfig(TransformerVaswaniWmtEnDeBigConfig):
    """Transformer big with dropout in the attention weights too."""

    encoder: EncoderConfig = EncoderConfig(self_attention=_DROPOUT)
    decoder: DecoderConfig = DecoderConfig(self_attention=_DROPOUT, cross_attention=_DROPOUT)


@dataclass(frozen=True)
class TransformerWmtEnDeBigT2tConfig(TransformerWmtEnDeBigConfig):
    """Transformer big that normalises first, with dropout in its three places."""

    pre_norm: bool = True
    activation_dropout: float = 0.1


@dataclass(frozen=True)
class TransformerLMBigConfig(TransformerLMConfig):
    """A language model of 12 blocks of 1024 / 4096 / 16 heads, pre-norm."""

    dim: int = 1024
    ffn_dim: int = 4096
    heads: int = 16
    layers: int = 12
    pre_norm: bool = True


@dataclass(frozen=True)
class TransformerLMGptConfig(TransformerLMConfig):
    """GPT's size: 12 blocks of 768 / 3072 / 12 heads, pre-norm, GELU."""

    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    layers: int = 12
    attention: Pattern = _DROPOUT
    pre_norm: bool = True
    activation: Activation = "gelu"  # in feed-forward networks; glu, geglu and swiglu are gated


@dataclass(frozen=True)
class TransformerLMGpt2SmallConfig(TransformerLMGptConfig):
    """What fairseq calls a small GPT-2: 24 blocks of 1024 / 4096 / 16 heads, pre-norm, GELU."""

    dim: int = 1024
    ffn_dim: int = 4096
    heads: int = 16
    layers: int = 24


@dataclass(frozen=True)
class TransformerLMGpt2MediumConfig(TransformerLMGptConfig):
    """What fairseq calls a medium GPT-2: 36 blocks of 1280 / 5120 / 20 heads, pre-norm, GELU."""

    dim: int = 1280
    ffn_dim: int = 5120
    heads: int = 20
    layers: int = 36


@dataclass(frozen=True)
class TransformerLMGpt2BigConfig(TransformerLMGptConfig):
    """What fairseq calls a big GPT-2: 48 blocks of 1600 / 6400 / 25 heads, pre-norm, GELU."""

    dim: int = 1600
    ffn_dim: int = 6400
    heads: int = 25
    layers: int = 48


@dataclass(frozen=True)
class TransformerLMWiki103Config(TransformerLMConfig):
    """Adaptive input and softmax for WikiText-103's 267,744 words: 16 blocks of 1024 / 4096 / 8 heads, pre-norm."""

    dim: int = 1024
    ffn_dim: int = 4096
    layers: int = 16
    attention: Pattern = _DROPOUT
    adaptive: AdaptiveConfig | None = AdaptiveConfig(dropout=0.2)  # bands of narrower vectors for rarer words
    pre_norm: bool = True
    final_norm: bool = False
    dropout: float = 0.3
    activation_dropout: float = 0.1


@dataclass(frozen=True)
class TransformerLMBaevskiWiki103Config(TransformerLMWiki103Config):
    """The same as transformer_lm_wiki103."""


@dataclass(frozen=True)
class TransformerLMGbwConfig(TransformerLMConfig):
    """For the Billion Word benchmark: 12 blocks of 512 / 4096 / 16 heads, pre-norm; its bands are not in its name."""

    ffn_dim: int = 4096
    heads: int = 16
    layers: int = 12
    attention: Pattern = _DROPOUT
    pre_norm: bool = True
    final_norm: bool = False


@dataclass(frozen=True)
class TransformerLMBaevskiGbwConfig(TransformerLMGbwConfig):
    """The same as transformer_lm_gbw."""


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

for _name, _lm_config in {
    "transformer_lm_big": TransformerLMBigConfig,
    "transformer_lm_gpt": TransformerLMGptConfig,
    "transformer_lm_gpt2_small": TransformerLMGpt2SmallConfig,
    "transformer_lm_gpt2_medium": TransformerLMGpt2MediumConfig,
    "transformer_lm_gpt2_big": TransformerLMGpt2BigConfig,
    "transformer_lm_wiki103": TransformerLMWiki103Config,
    "transformer_lm_baevski_wiki103": TransformerLMBaevskiWiki103Config,
    "transformer_lm_gbw": TransformerLMGbwConfig,
    "transformer_lm_baevski_gbw": TransformerLMBaevskiGbwConfig,
}.items():
    models.register(_name, _lm_config)(TransformerLM)
