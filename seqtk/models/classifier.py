"""A Transformer that classifies texts or pairs of texts: an encoder with any attention layer, and a classifier head.

B batch, R rows that the encoder reads (B, or 2 B for pairs), S length, D width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from seqtk.attention import Attention, Role, State, attentions
from seqtk.config.fields import setting
from seqtk.data.batch import Batch
from seqtk.data.encoder_batches import ClassBatch
from seqtk.models.base import Model, Side, models
from seqtk.models.stacks import BlocksConfig, Encoder, EncoderConfig
from seqtk.modules.embedding import ValueEmbedding, token_embedding
from seqtk.modules.head import Head
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class TransformerClassifierConfig(BlocksConfig):
    """An encoder that classifies texts."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("encoder.self_attention",)}

    encoder: EncoderConfig = EncoderConfig()
    pre_norm: bool = True
    max_source_length: int = setting(1024, at_least=1, help="Maximum number of tokens in a text.")
    causal: bool = setting(
        False, help="Each position sees only earlier positions. Set it for layers that have only a causal form."
    )
    input: Literal["tokens", "values"] = setting(
        "tokens",
        help="tokens: a vector per token. values: a linear map of the number that each token represents, such as a "
        "pixel.",
    )
    value_mean: float = setting(127.5, help="With input=values: this mean is subtracted from each number.")
    value_std: float = setting(
        127.5, above=0, help="With input=values: each number is divided by this after value_mean is subtracted."
    )


@models.register("transformer_classifier", TransformerClassifierConfig)
class TransformerClassifier(Model):
    """A classifier of texts: an embedding, an encoder and a head.

    Args:
        config: The settings of the model.
        vocabulary: V, the number of tokens.
        head: A function that builds the head for features of a given width. The task provides it (see `PooledHead`).
        values: For `input=values`: the number that each token represents; NaN for tokens that are not numbers.
    """

    reads: ClassVar[type[Batch]] = ClassBatch

    def __init__(
        self,
        config: TransformerClassifierConfig,
        *,
        vocabulary: int,
        head: Callable[[int], Head],
        values: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim or config.dim
        tokens: nn.Embedding | ValueEmbedding
        if config.input == "values" and values is None:
            raise UserError("model.input=values requires numbers, but this task has tokens.", "Set model.input=tokens.")
        if values is None:
            tokens = token_embedding(vocabulary, dim)
        else:
            tokens = ValueEmbedding(values, dim, mean=config.value_mean, std=config.value_std)
        built = head(dim)
        front = int(built.reads_class_vector)
        self.class_D = nn.Parameter(torch.randn(dim)) if front else None
        self.embedding = config.embedding(tokens, max_length=config.max_source_length)
        if not config.causal:
            _check_encoders(config.encoder)
        elif front:
            raise UserError(
                "task.pool=cls is not possible with model.causal=true: the class vector comes first and sees no text.",
                "Set task.pool=last or task.pool=mean.",
            )
        elif config.encoder.stem_layers:
            raise UserError(
                "model.causal=true is not possible with a stem: its convolutions also read later positions.",
                "Set model.encoder.stem_layers=0.",
            )
        role = Role.CAUSAL if config.causal else Role.ENCODER
        self.encoder = Encoder(config.encoder, options=config.options(config.encoder), role=role)
        self.max_source_length = self.encoder.max_source_length(config.max_source_length, further=front)
        self.head = built

    def forward(self, batch: ClassBatch, state: State = None) -> tuple[Tensor, State]:
        """Returns features_RSD, and None, because there is no recurrent state.

        If the head reads a class vector, the feature of this vector is at position 0.
        """
        x_RSD = self.embedding(batch.texts)
        front_R1D = None if self.class_D is None else self.class_D.to(x_RSD.dtype).expand(len(x_RSD), 1, -1)
        return self.encoder(x_RSD, pad_BS=batch.pad, front_BFD=front_R1D), None

    def length_limited_layers(self, side: Side) -> Iterable[Attention]:
        return self.encoder.attention_layers() if side == "source" else ()


def _check_encoders(config: EncoderConfig) -> None:
    """Raises UserError if an attention layer has only a causal form."""
    for layer in config.self_attention:
        roles = attentions.class_of(type(layer)).roles
        if Role.CAUSAL in roles and Role.ENCODER not in roles:
            raise UserError(
                f"model.encoder.self_attention={attentions.name_of(type(layer))}: this layer has only a causal form.",
                "Set model.causal=true: each position then sees only earlier positions.",
            )
