"""The Transformer classifier: an encoder over one text, with any attention layer, and a head for the whole row.

B batch, S length, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seqtk.attention import State
from seqtk.config.fields import setting
from seqtk.data.batch import Batch, ClassBatch
from seqtk.data.vocabulary import PAD
from seqtk.models.base import Model, models
from seqtk.models.stacks import BlocksConfig, Encoder, EncoderConfig
from seqtk.modules.embedding import token_embedding
from seqtk.modules.head import Head


@dataclass(frozen=True)
class TransformerClassifierConfig(BlocksConfig):
    """The sizes of an encoder that classifies texts."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("encoder.self_attention",)}

    encoder: EncoderConfig = EncoderConfig()
    pre_norm: bool = True
    max_source_length: int = setting(1024, at_least=1, help="The longest text, in tokens.")


@models.register("transformer_classifier", TransformerClassifierConfig)
class TransformerClassifier(Model):
    """Embedding, encoder and head.

    Args:
        config: The sizes.
        vocabulary: The number of tokens.
        head: Builds the head for features of a given width; the task's choice (see `PooledHead`).
    """

    reads: ClassVar[type[Batch]] = ClassBatch

    def __init__(self, config: TransformerClassifierConfig, *, vocabulary: int, head: Callable[[int], Head]) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim or config.dim
        tokens = token_embedding(vocabulary, dim)
        self.embedding = config.embedding(tokens, max_length=config.max_source_length)
        self.encoder = Encoder(config.encoder, options=config.options(config.encoder))
        self.max_source_length = self.encoder.max_source_length(config.max_source_length)
        self.head = head(dim)

    def forward(self, batch: ClassBatch, state: State = None) -> tuple[Tensor, State]:
        position_1S = torch.arange(batch.source_BS.shape[1], device=batch.source_BS.device)[None]
        features_BSD = self.encoder(self.embedding(batch.source_BS, position_1S), pad_BS=batch.source_BS == PAD)
        return features_BSD, None
