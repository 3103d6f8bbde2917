"""The Transformer classifier: an encoder over one text, with any attention layer, and a head for the whole row.

B batch, S length, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seqtk.attention import State
from seqtk.config.fields import probability, setting
from seqtk.data.batch import ClassBatch
from seqtk.data.vocabulary import PAD
from seqtk.models.base import Model, ModelConfig, models
from seqtk.models.stacks import BlockOptions, Encoder, EncoderConfig
from seqtk.modules.block import Activation
from seqtk.modules.embedding import Embedding, Positions, token_embedding
from seqtk.modules.head import Head


@dataclass(frozen=True)
class TransformerClassifierConfig(ModelConfig):
    """The sizes of an encoder that classifies texts."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("encoder.self_attention",)}

    dim: int = setting(512, at_least=1, help="Width of the model.")
    ffn_dim: int = setting(2048, at_least=1, help="Inner width of the feed-forward networks.")
    heads: int = setting(8, at_least=1, help="Heads of attention layers that do not set theirs.")
    encoder: EncoderConfig = EncoderConfig()
    positions: Positions = setting("sinusoidal", help="The position embeddings.")
    max_source_length: int = setting(1024, at_least=1, help="The longest text, in tokens.")
    pre_norm: bool = setting(True, help="Normalise before each sublayer and at the end instead of after each.")
    scale_embedding: bool = setting(True, help="Multiply token embeddings by √dim.")
    norm_embedding: bool = setting(False, help="Apply a layer norm to the embeddings.")
    activation: Activation = setting("relu", help="The activation of the feed-forward networks.")
    dropout: float = probability(0.1, help="Dropout after embeddings and sublayers.")
    activation_dropout: float = probability(0.0, help="Dropout inside the feed-forward networks.")


@models.register("transformer_classifier", TransformerClassifierConfig)
class TransformerClassifier(Model):
    """Embedding, encoder and head.

    Args:
        config: The sizes.
        vocabulary: The number of tokens.
        head: Builds the head for features of a given width; the task's choice (see `PooledHead`).
    """

    reads = ClassBatch

    def __init__(self, config: TransformerClassifierConfig, *, vocabulary: int, head: Callable[[int], Head]) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim or config.dim
        self.embedding = Embedding(
            token_embedding(vocabulary, dim),
            positions=config.positions,
            max_length=config.max_source_length,
            dropout=config.dropout,
            scale=config.scale_embedding,
            norm=config.norm_embedding,
        )
        options = BlockOptions(
            dim=dim,
            ffn_dim=config.encoder.ffn_dim or config.ffn_dim,
            heads=config.encoder.heads or config.heads,
            activation=config.activation,
            dropout=config.dropout,
            activation_dropout=config.activation_dropout,
            pre_norm=config.pre_norm,
        )
        self.encoder = Encoder(config.encoder, options=options)
        self.max_source_length = self.encoder.max_source_length(config.max_source_length)
        self.head = head(dim)

    def forward(self, batch: ClassBatch, state: State = None) -> tuple[Tensor, State]:
        position_1S = torch.arange(batch.source_BS.shape[1], device=batch.source_BS.device)[None]
        features_BSD = self.encoder(self.embedding(batch.source_BS, position_1S), pad_BS=batch.source_BS == PAD)
        return features_BSD, None
