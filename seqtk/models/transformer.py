"""The Transformer encoder–decoder (Vaswani et al. 2017), with any layers for self-attention and cross-attention.

B batch, S source length, T target length, D width of the decoder, M width of the encoder.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from seqtk.attention import State
from seqtk.config.fields import setting
from seqtk.data.batch import TranslationBatch
from seqtk.data.vocabulary import PAD
from seqtk.models.base import Model, models
from seqtk.models.stacks import BlocksConfig, Decoder, DecoderConfig, Encoder, EncoderConfig
from seqtk.modules.embedding import token_embedding
from seqtk.modules.head import LinearHead
from seqtk.utils.errors import UserError

SharedEmbeddings = Literal["none", "decoder", "all"]


@dataclass(frozen=True)
class TransformerConfig(BlocksConfig):
    """Transformer base: 6 + 6 blocks of width 512 with 8 heads, post-norm, ReLU, sinusoidal positions."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": ("encoder.self_attention", "decoder.self_attention"),
    }

    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    max_source_length: int = setting(
        1024, at_least=1, help="Maximum number of tokens in a source, and number of learned positions."
    )
    max_target_length: int = setting(
        1024, at_least=1, help="Maximum number of tokens in a target, and number of learned positions."
    )
    share_embeddings: SharedEmbeddings = setting(
        "all",
        help="Embeddings that share a table. all: source, target and output, which requires a joint dictionary. "
        "decoder: target and output.",
    )


@models.register("transformer", TransformerConfig)
class Transformer(Model):
    """The Transformer: embeddings, encoder, decoder and head. Parameter counts equal fairseq's."""

    reads = TranslationBatch

    def __init__(self, config: TransformerConfig, *, source_vocabulary: int, target_vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.max_target_length = config.max_target_length
        memory_dim = config.encoder.dim or config.dim
        dim = config.decoder.dim or config.dim
        if config.share_embeddings == "all" and (source_vocabulary, memory_dim) != (target_vocabulary, dim):
            raise UserError(
                "model.share_embeddings=all requires the same vocabulary and width on both sides.",
                f"The source has {source_vocabulary} tokens and width {memory_dim}, "
                f"the target {target_vocabulary} tokens and width {dim}.",
                "Use seqtk-preprocess joint=true, or set model.share_embeddings=decoder.",
            )
        target_tokens = token_embedding(target_vocabulary, dim)
        source_tokens = (
            target_tokens if config.share_embeddings == "all" else token_embedding(source_vocabulary, memory_dim)
        )
        self.source_embedding = config.embedding(source_tokens, max_length=config.max_source_length)
        self.target_embedding = config.embedding(target_tokens, max_length=config.max_target_length)
        self.encoder = Encoder(config.encoder, options=config.options(config.encoder))
        self.max_source_length = self.encoder.max_source_length(config.max_source_length)
        self.decoder = Decoder(config.decoder, options=config.options(config.decoder), memory_dim=memory_dim)
        self.head = LinearHead(
            dim, target_vocabulary, tied_to=None if config.share_embeddings == "none" else target_tokens
        )

    def encode(self, source_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the encoder output memory_BSM, and pad_BS, which is True at padding."""
        pad_BS = source_BS == PAD
        return self.encoder(self.source_embedding(source_BS), pad_BS=pad_BS), pad_BS

    def forward(self, batch: TranslationBatch, state: State = None) -> tuple[Tensor, State]:
        memory_BSM, pad_BS = self.encode(batch.source_BS)
        features_BTD, _ = self.decoder(self.target_embedding(batch.previous_BT), memory_BSM, pad_BS=pad_BS)
        return features_BTD, None

    def start(self, batch: TranslationBatch) -> State:
        memory_BSM, pad_BS = self.encode(batch.source_BS)
        rows = len(batch.source_BS)
        return {
            "position_B1": torch.zeros(rows, 1, dtype=torch.long, device=memory_BSM.device),
            "blocks": self.decoder.start(rows, memory_BSM, pad_BS=pad_BS),
        }

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        x_B1D = self.target_embedding(token_B[:, None], state["position_B1"])
        y_B1D, blocks = self.decoder.step(x_B1D, state["blocks"])
        return y_B1D, {"position_B1": state["position_B1"] + 1, "blocks": blocks}
