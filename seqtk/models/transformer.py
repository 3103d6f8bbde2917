"""The Transformer encoder–decoder (Vaswani et al. 2017), with any attention layer in its three slots.

B batch, S source length, T target length, D width of the decoder, M width of the encoder.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from seqtk.attention import State
from seqtk.config.fields import probability, setting
from seqtk.data.batch import TranslationBatch
from seqtk.data.vocabulary import PAD
from seqtk.models.base import Model, ModelConfig, models
from seqtk.models.stacks import BlockOptions, Decoder, DecoderConfig, Encoder, EncoderConfig, StackConfig
from seqtk.modules.block import Activation
from seqtk.modules.embedding import Embedding, Positions, token_embedding
from seqtk.modules.head import LinearHead
from seqtk.utils.errors import UserError

SharedEmbeddings = Literal["none", "decoder", "all"]


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Transformer base: 6 + 6 blocks of 512 / 2048 / 8 heads, post-norm, ReLU, sinusoidal positions."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {
        "attention": ("encoder.self_attention", "decoder.self_attention"),
    }

    dim: int = setting(512, at_least=1, help="Width of the model.")
    ffn_dim: int = setting(2048, at_least=1, help="Inner width of the feed-forward networks.")
    heads: int = setting(8, at_least=1, help="Heads of attention layers that set none.")
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    positions: Positions = setting(
        "sinusoidal",
        help="Positions added to the embeddings. none: use it with attention.positions=rotary, for example.",
    )
    max_source_length: int = setting(1024, at_least=1, help="Tokens in a source, and rows of its learned positions.")
    max_target_length: int = setting(1024, at_least=1, help="Tokens in a target, and rows of its learned positions.")
    share_embeddings: SharedEmbeddings = setting(
        "all", help="all: source, target and output share one table. decoder: target and output do."
    )
    pre_norm: bool = setting(
        False, help="Normalize before each sublayer and at the end, instead of after each sublayer."
    )
    scale_embedding: bool = setting(True, help="Multiply token vectors by √dim.")
    norm_embedding: bool = setting(False, help="Add a layer norm after the embeddings.")
    activation: Activation = setting(
        "relu", help="Activation of the feed-forward networks. glu, geglu and swiglu are gated."
    )
    dropout: float = probability(0.1, help="Dropout after embeddings and sublayers.")
    activation_dropout: float = probability(
        0.0, help="Dropout inside feed-forward networks. Attention weights have attention.dropout."
    )


@models.register("transformer", TransformerConfig)
class Transformer(Model):
    """Embeddings, encoder, decoder and head; parameter counts as fairseq's."""

    reads = TranslationBatch

    def __init__(self, config: TransformerConfig, *, source_vocabulary: int, target_vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.max_target_length = config.max_target_length
        memory_dim = config.encoder.dim or config.dim
        dim = config.decoder.dim or config.dim
        if config.share_embeddings == "all" and (source_vocabulary, memory_dim) != (target_vocabulary, dim):
            raise UserError(
                "model.share_embeddings=all needs one vocabulary and one width on both sides.",
                f"Source: {source_vocabulary} tokens of width {memory_dim}; target: {target_vocabulary} of {dim}.",
                "Preprocess with joint=true, or set model.share_embeddings=decoder.",
            )
        target_tokens = token_embedding(target_vocabulary, dim)
        source_tokens = (
            target_tokens if config.share_embeddings == "all" else token_embedding(source_vocabulary, memory_dim)
        )
        self.source_embedding = self._embedding(source_tokens, max_length=config.max_source_length)
        self.target_embedding = self._embedding(target_tokens, max_length=config.max_target_length)
        self.encoder = Encoder(config.encoder, options=self._options(config.encoder))
        self.max_source_length = self.encoder.max_source_length(config.max_source_length)
        self.decoder = Decoder(config.decoder, options=self._options(config.decoder), memory_dim=memory_dim)
        self.head = LinearHead(
            dim, target_vocabulary, tied_to=None if config.share_embeddings == "none" else target_tokens
        )

    def _embedding(self, tokens: nn.Embedding, *, max_length: int) -> Embedding:
        return Embedding(
            tokens,
            positions=self.config.positions,
            max_length=max_length,
            dropout=self.config.dropout,
            scale=self.config.scale_embedding,
            norm=self.config.norm_embedding,
        )

    def _options(self, stack: StackConfig) -> BlockOptions:
        return BlockOptions(
            dim=stack.dim or self.config.dim,
            ffn_dim=stack.ffn_dim or self.config.ffn_dim,
            heads=stack.heads or self.config.heads,
            activation=self.config.activation,
            dropout=self.config.dropout,
            activation_dropout=self.config.activation_dropout,
            pre_norm=self.config.pre_norm,
        )

    def encode(self, source_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder output memory_BSM and its padding pad_BS."""
        pad_BS = source_BS == PAD
        position_1S = torch.arange(source_BS.shape[1], device=source_BS.device)[None]
        return self.encoder(self.source_embedding(source_BS, position_1S), pad_BS=pad_BS), pad_BS

    def forward(self, batch: TranslationBatch, state: State = None) -> tuple[Tensor, State]:
        memory_BSM, pad_BS = self.encode(batch.source_BS)
        position_1T = torch.arange(batch.previous_BT.shape[1], device=batch.previous_BT.device)[None]
        x_BTD = self.target_embedding(batch.previous_BT, position_1T)
        features_BTD, _ = self.decoder(x_BTD, memory_BSM, pad_BS=pad_BS)
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
