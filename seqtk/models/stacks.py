"""The encoder and the decoder of a Transformer: blocks of attention and feed-forward, any attention in any slot.

B batch, S source length, T target length, D width of the stack, M width of the memory.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from seqtk.attention import Attention, AttentionConfig, CarryingAttention, HeadedConfig, Role, State, attentions
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.errors import UserError
from seqtk.modules.block import Residual
from seqtk.modules.feedforward import Activation, FeedForward

Pattern = tuple[AttentionConfig, ...]
"""Attention layers from the first block on; a shorter pattern repeats down the stack."""


@dataclass(frozen=True)
class StackConfig:
    """What an encoder and a decoder have in common; a size of None is the model's."""

    layers: int = 6  # blocks
    dim: int | None = None  # width; null: the model's
    ffn_dim: int | None = None  # inner width of the feed-forward networks; null: the model's
    heads: int | None = None  # of attention layers that name none; null: the model's
    self_attention: Pattern = (SoftmaxConfig(),)  # one layer, or a list that repeats down the stack


@dataclass(frozen=True)
class EncoderConfig(StackConfig):
    """The blocks that read the source."""


@dataclass(frozen=True)
class DecoderConfig(StackConfig):
    """The blocks that write the target."""

    cross_attention: Pattern = (SoftmaxConfig(),)  # as self_attention


@dataclass(frozen=True)
class BlockOptions:
    """What every block of a model shares."""

    dim: int
    ffn_dim: int
    heads: int
    activation: Activation
    dropout: float
    activation_dropout: float
    pre_norm: bool

    def attention(self, config: AttentionConfig, *, role: Role, memory_dim: int | None = None) -> Attention:
        """The layer of `config`, with the model's heads where it names none of its own."""
        if isinstance(config, HeadedConfig) and config.heads is None:
            config = replace(config, heads=self.heads)
        return attentions.build(config, dim=self.dim, role=role, memory_dim=memory_dim)

    def residual(self) -> Residual:
        return Residual(self.dim, dropout=self.dropout, pre_norm=self.pre_norm)

    def feed_forward(self) -> FeedForward:
        return FeedForward(self.dim, self.ffn_dim, activation=self.activation, dropout=self.activation_dropout)


def layers_of(pattern: Pattern, count: int, *, slot: str) -> list[AttentionConfig]:
    """One config per block. Raises UserError for an empty pattern, or one longer than the stack."""
    if count < 0:
        raise UserError(f"{slot.rpartition('.')[0]}.layers={count} cannot be negative.")
    if not 0 < len(pattern) <= max(count, 1):
        raise UserError(
            f"'{slot}' names {len(pattern)} attention layers for {count} blocks.",
            "Name between one and as many as there are blocks; a shorter pattern repeats.",
        )
    return [pattern[index % len(pattern)] for index in range(count)]


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, attention: AttentionConfig, *, options: BlockOptions) -> None:
        super().__init__()
        self.self_attention: Attention = options.attention(attention, role=Role.ENCODER)
        self.self_residual = options.residual()
        self.feed_forward = options.feed_forward()
        self.ffn_residual = options.residual()

    def forward(
        self, x_BSD: Tensor, carried: Tensor | None, *, pad_BS: Tensor | None, positions_BS: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The block's output, and what the layers that carry a tensor up the stack carry from here."""
        after = carried

        def attend(x_BSD: Tensor) -> Tensor:
            nonlocal after
            layer = self.self_attention
            if not isinstance(layer, CarryingAttention):
                return layer(x_BSD, pad_BS=pad_BS, positions_BT=positions_BS)  # type: ignore[no-any-return]
            y_BSD, after = layer.carry(x_BSD, carried, pad_BS=pad_BS, positions_BT=positions_BS)
            return y_BSD

        x_BSD = self.self_residual(x_BSD, attend)
        return self.ffn_residual(x_BSD, self.feed_forward), after


class Encoder(nn.Module):
    """A stack of encoder blocks, with a final norm if they normalise first."""

    def __init__(self, config: StackConfig, *, options: BlockOptions) -> None:
        super().__init__()
        pattern = layers_of(config.self_attention, config.layers, slot="model.encoder.self_attention")
        self.blocks = nn.ModuleList(EncoderBlock(attention, options=options) for attention in pattern)
        carrying = [
            block.self_attention for block in self.blocks if isinstance(block.self_attention, CarryingAttention)
        ]
        for layer in carrying[1:]:
            layer.follow()
        self.norm = nn.LayerNorm(options.dim) if options.pre_norm else nn.Identity()

    def forward(self, x_BSD: Tensor, *, pad_BS: Tensor | None, positions_BS: Tensor | None = None) -> Tensor:
        carried: Tensor | None = None
        for block in self.blocks:
            x_BSD, carried = block(x_BSD, carried, pad_BS=pad_BS, positions_BS=positions_BS)
        return self.norm(x_BSD)  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the memory, then feed-forward."""

    def __init__(
        self, attention: AttentionConfig, cross: AttentionConfig, *, options: BlockOptions, memory_dim: int
    ) -> None:
        super().__init__()
        self.self_attention: Attention = options.attention(attention, role=Role.CAUSAL)
        self.self_residual = options.residual()
        self.cross_attention: Attention = options.attention(cross, role=Role.CROSS, memory_dim=memory_dim)
        self.cross_residual = options.residual()
        self.feed_forward = options.feed_forward()
        self.ffn_residual = options.residual()

    def forward(self, x_BTD: Tensor, memory_BSM: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        # Target rows are padded on the right, where causality alone keeps padding from being seen.
        x_BTD = self.self_residual(x_BTD, self.self_attention)
        x_BTD = self.cross_residual(x_BTD, lambda x: self.cross_attention(x, memory_BSM, pad_BS=pad_BS))
        return self.ffn_residual(x_BTD, self.feed_forward)  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor, *, pad_BS: Tensor | None) -> State:
        return {
            "self": self.self_attention.start(batch),
            "cross": self.cross_attention.start(batch, memory_BSM, pad_BS=pad_BS),
        }

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        after = dict(state)

        def step_self(x_B1D: Tensor) -> Tensor:
            y_B1D, after["self"] = self.self_attention.step(x_B1D, state["self"])
            return y_B1D

        def step_cross(x_B1D: Tensor) -> Tensor:
            y_B1D, after["cross"] = self.cross_attention.step(x_B1D, state["cross"])
            return y_B1D

        x_B1D = self.self_residual(x_B1D, step_self)
        x_B1D = self.cross_residual(x_B1D, step_cross)
        return self.ffn_residual(x_B1D, self.feed_forward), after


class Decoder(nn.Module):
    """A stack of decoder blocks, with a final norm if they normalise first."""

    def __init__(self, config: DecoderConfig, *, options: BlockOptions, memory_dim: int) -> None:
        super().__init__()
        selves = layers_of(config.self_attention, config.layers, slot="model.decoder.self_attention")
        crosses = layers_of(config.cross_attention, config.layers, slot="model.decoder.cross_attention")
        self.blocks = nn.ModuleList(
            DecoderBlock(attention, cross, options=options, memory_dim=memory_dim)
            for attention, cross in zip(selves, crosses, strict=True)
        )
        self.norm = nn.LayerNorm(options.dim) if options.pre_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, memory_BSM: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        for block in self.blocks:
            x_BTD = block(x_BTD, memory_BSM, pad_BS=pad_BS)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def start(self, batch: int, memory_BSM: Tensor, *, pad_BS: Tensor | None) -> State:
        return [block.start(batch, memory_BSM, pad_BS=pad_BS) for block in self.blocks]  # type: ignore[operator]

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        after = []
        for block, block_state in zip(self.blocks, state, strict=True):
            x_B1D, block_state = block.step(x_B1D, block_state)  # type: ignore[operator]
            after.append(block_state)
        return self.norm(x_B1D), after
