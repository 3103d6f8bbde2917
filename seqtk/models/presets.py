"""fairseq's named architectures, for example `model=transformer_wmt_en_de_big`.

Each architecture is a registered model with different defaults, which a recipe can change. Descriptions give the width,
the inner width of the feed-forward networks, and the number of heads: 512 / 2048 / 8 heads.

Sizes and dropout rates come from fairseq's model zoo. They are those of Vaswani et al. 2017, table 3, of tensor2tensor
(`_t2t`), and of Wu et al. 2019 (arXiv 1901.10430, section 4). There is one difference: source, target and output share
one embedding table by default (`share_embeddings`, `tie_embeddings`).

The presets of Wu et al., `lightconv…`, use dynamic convolutions for self-attention. For lightweight convolutions, set a
pattern of `lightweight_conv` layers with the same kernel sizes.
"""

from dataclasses import field, make_dataclass
from typing import Any

from seqtk.attention.convolution import DynamicConvConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.config.schema import hints_of
from seqtk.models import language_model as language_model
from seqtk.models import transformer as transformer
from seqtk.models.base import models
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.modules.adaptive import AdaptiveConfig

ENCODER_KERNELS = (3, 7, 15, 31, 31, 31, 31)
DECODER_KERNELS = (3, 7, 15, 31, 31, 31)


def preset(name: str, base: str, about: str, /, **defaults: Any) -> None:
    """Registers the model `base` under a new name, with different defaults. `about` is its help text."""
    parent = models.config_type(base)
    hints = hints_of(parent)
    fields = [(key, hints[key], field(default=value)) for key, value in defaults.items()]
    class_name = f"{''.join(part.capitalize() for part in name.split('_'))}Config"
    namespace = {"__doc__": about, "__module__": __name__}
    config_type = make_dataclass(class_name, fields, bases=(parent,), namespace=namespace, frozen=True)
    globals()[class_name] = config_type  # pickle looks up classes by name
    models.register(name, config_type)(models.class_of(parent))


def _convolutions(**fields: Any) -> dict[str, EncoderConfig | DecoderConfig]:
    """Returns configs of an encoder and a decoder with dynamic convolutions.

    Their kernels and the weights of cross-attention have the same dropout.
    """
    encoder, decoder = (
        tuple(DynamicConvConfig(kernel_size=size, **fields) for size in sizes)
        for sizes in (ENCODER_KERNELS, DECODER_KERNELS)
    )
    cross = (SoftmaxConfig(dropout=fields.get("dropout", 0.0)),)
    return {
        "encoder": EncoderConfig(layers=len(encoder), self_attention=encoder),
        "decoder": DecoderConfig(layers=len(decoder), self_attention=decoder, cross_attention=cross),
    }


BIG = {"dim": 1024, "ffn_dim": 4096, "heads": 16}
DROPPED = (SoftmaxConfig(dropout=0.1),)

preset(
    "transformer_tiny",
    "transformer",
    "2 + 2 blocks of 64 / 64 / 2 heads, for quick experiments.",
    dim=64,
    ffn_dim=64,
    heads=2,
    encoder=EncoderConfig(layers=2),
    decoder=DecoderConfig(layers=2),
)
preset("transformer_iwslt_de_en", "transformer", "6 + 6 blocks of 512 / 1024 / 4 heads.", ffn_dim=1024, heads=4)
preset("transformer_wmt_en_de", "transformer", "Transformer base: 6 + 6 blocks of 512 / 2048 / 8 heads.")
preset(
    "transformer_vaswani_wmt_en_de_big",
    "transformer",
    "Transformer big: 6 + 6 blocks of 1024 / 4096 / 16 heads, dropout 0.3.",
    **BIG,
    dropout=0.3,
)
preset(
    "transformer_vaswani_wmt_en_fr_big",
    "transformer_vaswani_wmt_en_de_big",
    "Transformer big with dropout 0.1, for a large corpus (36 million pairs).",
    dropout=0.1,
)
preset(
    "transformer_wmt_en_de_big",
    "transformer_vaswani_wmt_en_de_big",
    "Transformer big with dropout of attention weights.",
    encoder=EncoderConfig(self_attention=DROPPED),
    decoder=DecoderConfig(self_attention=DROPPED, cross_attention=DROPPED),
)
preset(
    "transformer_wmt_en_de_big_t2t",
    "transformer_wmt_en_de_big",
    "Transformer big, pre-norm, with dropout of attention weights and activations.",
    pre_norm=True,
    activation_dropout=0.1,
)

preset(
    "lightconv",
    "transformer",
    "Dynamic convolutions of 3 to 31 taps: 7 + 6 blocks of 512 / 2048 / 8 heads.",
    **_convolutions(input_dropout=0.1),
)
preset("lightconv_wmt_en_de", "lightconv", "A second name of lightconv.")
preset(
    "lightconv_iwslt_de_en",
    "lightconv",
    "Dynamic convolutions without gates: 7 + 6 blocks of 512 / 1024 / 4 heads.",
    ffn_dim=1024,
    heads=4,
    **_convolutions(glu=False, dropout=0.1),
)
preset(
    "lightconv_wmt_en_de_big",
    "lightconv",
    "Dynamic convolutions: 7 + 6 blocks of 1024 / 4096 / 16 heads, dropout 0.3.",
    **BIG,
    **_convolutions(input_dropout=0.1, dropout=0.1),
    dropout=0.3,
)
preset("lightconv_wmt_en_fr_big", "lightconv_wmt_en_de_big", "lightconv_wmt_en_de_big with dropout 0.1.", dropout=0.1)
preset(
    "lightconv_wmt_zh_en_big",
    "lightconv_wmt_en_de_big",
    "lightconv_wmt_en_de_big with dropout 0.2, also of kernels and attention weights.",
    **_convolutions(input_dropout=0.1, dropout=0.2),
    dropout=0.2,
)

preset(
    "transformer_lm_big",
    "transformer_lm",
    "A language model of 12 blocks of 1024 / 4096 / 16 heads, pre-norm.",
    **BIG,
    layers=12,
    pre_norm=True,
)
preset(
    "transformer_lm_gpt",
    "transformer_lm",
    "The size of GPT: 12 blocks of 768 / 3072 / 12 heads, pre-norm, GELU.",
    dim=768,
    ffn_dim=3072,
    heads=12,
    layers=12,
    attention=DROPPED,
    pre_norm=True,
    activation="gelu",
)
for _size, _dim, _heads, _layers in (("small", 1024, 16, 24), ("medium", 1280, 20, 36), ("big", 1600, 25, 48)):
    preset(
        f"transformer_lm_gpt2_{_size}",
        "transformer_lm_gpt",
        f"fairseq's {_size} GPT-2: {_layers} blocks of {_dim} / {4 * _dim} / {_heads} heads.",
        dim=_dim,
        ffn_dim=4 * _dim,
        heads=_heads,
        layers=_layers,
    )
preset(
    "transformer_lm_wiki103",
    "transformer_lm",
    "Adaptive input and softmax for WikiText-103's 267,744 words: 16 blocks of 1024 / 4096 / 8 heads, pre-norm.",
    dim=1024,
    ffn_dim=4096,
    layers=16,
    attention=DROPPED,
    adaptive=AdaptiveConfig(dropout=0.2),
    pre_norm=True,
    final_norm=False,
    dropout=0.3,
    activation_dropout=0.1,
)
preset("transformer_lm_baevski_wiki103", "transformer_lm_wiki103", "A second name of transformer_lm_wiki103.")
preset(
    "transformer_lm_gbw",
    "transformer_lm",
    "For the Billion Word benchmark: 12 blocks of 512 / 4096 / 16 heads, pre-norm. Set model.adaptive.cutoffs.",
    ffn_dim=4096,
    heads=16,
    layers=12,
    attention=DROPPED,
    pre_norm=True,
    final_norm=False,
)
preset("transformer_lm_baevski_gbw", "transformer_lm_gbw", "A second name of transformer_lm_gbw.")
