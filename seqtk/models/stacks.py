"""Stacks of blocks with any attention layers: the encoder, and the decoder, which is also used by language models.

B batch, S source length, T target length, D width of the stack, M width of the memory, N memory tokens, F vectors that
the model puts before the source.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from seqtk.attention import Attention, AttentionConfig, QKVConfig, Role, Scope, State, attentions
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.config.fields import probability, setting
from seqtk.models.base import ModelConfig
from seqtk.modules.adaptive import AdaptiveEmbedding
from seqtk.modules.block import Activation, FeedForward, Residual
from seqtk.modules.embedding import Embedding, Positions, ValueEmbedding
from seqtk.modules.stem import ConvolutionalStem
from seqtk.utils.errors import UserError, how_many

Pattern = tuple[AttentionConfig, ...]
"""The attention layers of the blocks, first block first. A pattern shorter than the stack repeats."""


ENCODER_SLOT = "model.encoder.self_attention"
CROSS_SLOT = "model.decoder.cross_attention"


@dataclass(frozen=True)
class StackConfig:
    """Settings that an encoder and a decoder have in common. A size of None is the size of the whole model."""

    layers: int = setting(6, at_least=0, at_most=10_000, help="Number of blocks.")
    dim: int | None = setting(None, at_least=1, help="Width of the stack. null: the model's dim.")
    ffn_dim: int | None = setting(None, at_least=1, help="Inner width of the feed-forward. null: the model's ffn_dim.")
    heads: int | None = setting(
        None, at_least=1, help="Number of heads in attention layers that do not set heads. null: heads of the model."
    )
    self_attention: Pattern = setting((SoftmaxConfig(),), help="One layer, or a list that repeats through the blocks.")


@dataclass(frozen=True)
class EncoderConfig(StackConfig):
    """The blocks that read the source."""

    memory_tokens: int = setting(
        0, at_least=0, help="Number of learned vectors before the source. They are removed after the last block."
    )
    stem_layers: int = setting(0, at_least=0, at_most=10_000, help="Convolutions before the first block.")
    stem_kernel_size: int = setting(3, at_least=1, help="Kernel size of the stem convolutions. Must be odd.")
    stem_width: int | None = setting(
        None,
        at_least=1,
        help="Width of the images in pixels, for two-dimensional stem convolutions. null: one-dimensional stem.",
    )


@dataclass(frozen=True)
class DecoderConfig(StackConfig):
    """The blocks that produce the target."""

    cross_attention: Pattern = setting((SoftmaxConfig(),), help="One layer, or a list that repeats through the blocks.")


@dataclass(frozen=True)
class BlocksConfig(ModelConfig):
    """Base class of the configs of models that consist of Transformer blocks."""

    dim: int = setting(512, at_least=1, help="Width of the model.")
    ffn_dim: int = setting(2048, at_least=1, help="Inner width of the feed-forward networks.")
    heads: int = setting(8, at_least=1, help="Number of heads in attention layers that do not set heads.")
    positions: Positions = setting(
        "sinusoidal",
        help="Position embeddings, added to token embeddings. none: for attention layers that encode positions.",
    )
    pre_norm: bool = setting(
        False, help="Normalize before each sublayer and after the last block, instead of after each sublayer."
    )
    scale_embedding: bool = setting(True, help="Multiply token vectors by √dim.")
    norm_embedding: bool = setting(False, help="Add a layer norm after the embeddings.")
    activation: Activation = setting(
        "relu", help="Activation of the feed-forward networks. glu, geglu and swiglu are gated."
    )
    dropout: float = probability(0.1, help="Dropout after embeddings and sublayers.")
    activation_dropout: float = probability(
        0.0, help="Dropout in feed-forward networks, after the activation. For attention weights: attention.dropout."
    )
    recompute_blocks: int | Literal["all"] = setting(
        0,
        at_least=0,
        help="Activation checkpointing: recompute every n-th block in the backward pass instead of storing its "
        "activations. 0: no block; 1: all blocks. The result is the same.",
    )

    def options(self, stack: StackConfig = StackConfig()) -> "BlockOptions":
        """Returns the options of the blocks of `stack`. A size that `stack` does not set is the model's size."""
        return BlockOptions(
            dim=stack.dim or self.dim,
            ffn_dim=stack.ffn_dim or self.ffn_dim,
            heads=stack.heads or self.heads,
            activation=self.activation,
            dropout=self.dropout,
            activation_dropout=self.activation_dropout,
            pre_norm=self.pre_norm,
            recompute_every=1 if self.recompute_blocks == "all" else self.recompute_blocks,
        )

    def embedding(self, tokens: nn.Embedding | AdaptiveEmbedding | ValueEmbedding, *, max_length: int) -> Embedding:
        """Returns the module that computes the input of a stack from tokens and positions."""
        return Embedding(
            tokens,
            positions=self.positions,
            max_length=max_length,
            dropout=self.dropout,
            scale=self.scale_embedding,
            norm=self.norm_embedding,
        )


@dataclass(frozen=True)
class BlockOptions:
    """Options that all blocks of a stack share."""

    dim: int
    ffn_dim: int
    heads: int
    activation: Activation
    dropout: float
    activation_dropout: float
    pre_norm: bool
    bias: bool = True
    """True if feed-forward networks and norms have biases. Attention layers have a separate setting."""
    final_norm: bool = True
    """True if a pre-norm stack ends in a norm."""
    recompute_every: int = 0
    """The backward pass recomputes every n-th block of a stack, from the first on. 0: none."""

    def attention(self, config: AttentionConfig, *, role: Role, slot: str, memory_dim: int | None = None) -> Attention:
        """Builds the attention layer of the config key `slot`. The model sets the number of heads if `config` does not.

        Raises:
            UserError: If settings exclude each other. The message contains the full keys: `slot` replaces `attention`.
        """
        if isinstance(config, QKVConfig) and config.heads is None:
            config = replace(config, heads=self.heads)
        try:
            layer = attentions.build(config, dim=self.dim, role=role, memory_dim=memory_dim)
        except UserError as error:
            raise UserError(*re.sub(r"(?<![\w.])attention\.", f"{slot}.", str(error)).splitlines()) from None
        layer.slot = slot
        return layer

    def residual(self) -> Residual:
        return Residual(self.dim, dropout=self.dropout, pre_norm=self.pre_norm, bias=self.bias)

    def feed_forward(self) -> FeedForward:
        return FeedForward(
            self.dim, self.ffn_dim, activation=self.activation, dropout=self.activation_dropout, bias=self.bias
        )

    def stack_norm(self) -> nn.Module:
        """Returns the module at the end of a stack: a layer norm if blocks are pre-norm, otherwise the identity."""
        return nn.LayerNorm(self.dim, bias=self.bias) if self.pre_norm and self.final_norm else nn.Identity()


def layers_of(pattern: Pattern, count: int, *, slot: str) -> list[AttentionConfig]:
    """Returns the attention config of each of `count` blocks: the pattern, repeated.

    Raises UserError if the pattern is empty or has more than `count` layers.
    """
    if not 0 < len(pattern) <= max(count, 1):
        raise UserError(
            f"'{slot}' has {how_many(len(pattern), 'attention layer')} for {how_many(count, 'block')}.",
            "A list must have at least one layer and at most one for each block. A shorter list repeats.",
        )
    return [pattern[index % len(pattern)] for index in range(count)]


def run_block(block: nn.Module, *inputs: Any, index: int, every: int, **options: Any) -> Any:
    """Calls block `index` of a stack. One in `every` blocks is recomputed in the backward pass.

    A recomputed block stores only its inputs (Chen et al. 2016, arXiv:1604.06174). The second computation has the same
    dropout masks as the first.
    """
    if every and index % every == 0 and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, **options)
    return block(*inputs, **options)


class EncoderBlock(nn.Module):
    """An encoder block: self-attention, then feed-forward."""

    def __init__(self, attention: AttentionConfig, *, options: BlockOptions, role: Role = Role.ENCODER) -> None:
        super().__init__()
        self.self_attention: Attention = options.attention(attention, role=role, slot=ENCODER_SLOT)
        self.self_residual = options.residual()
        self.feed_forward = options.feed_forward()
        self.ffn_residual = options.residual()

    def forward(self, x_BSD: Tensor, *, pad_BS: Tensor | None, state: State = None) -> tuple[Tensor, State]:
        """Returns the output of the block and the state for the next block."""
        attention = self.self_attention
        takes_state = attention.scope is Scope.LAYER and attention.role is Role.ENCODER
        if attention.role is Role.CAUSAL:
            pad_BS = None  # the causal mask hides the padding, which is on the right
        y_BSD, new_state = attention(self.self_residual.pre(x_BSD), pad_BS=pad_BS, state=state if takes_state else None)
        x_BSD = self.self_residual.post(x_BSD, y_BSD)
        y_BSD = self.feed_forward(self.ffn_residual.pre(x_BSD))
        return self.ffn_residual.post(x_BSD, y_BSD), new_state if takes_state else state


class Encoder(nn.Module):
    """A stack of encoder blocks, with a final norm if they are pre-norm.

    With `memory_tokens`, it is a Memory Transformer (Burtsev et al. 2020, arXiv 2006.11527, section 3): learned vectors
    are put before the source. Attention includes them, and they are removed from the output.

    With the role CAUSAL, a position does not see later positions.
    """

    def __init__(self, config: EncoderConfig, *, options: BlockOptions, role: Role = Role.ENCODER) -> None:
        super().__init__()
        self.recompute_every = options.recompute_every
        pattern = layers_of(config.self_attention, config.layers, slot=ENCODER_SLOT)
        self.stem = (
            ConvolutionalStem(
                options.dim,
                layers=config.stem_layers,
                kernel_size=config.stem_kernel_size,
                width=config.stem_width,
            )
            if config.stem_layers
            else None
        )
        self.memory_ND = nn.Parameter(torch.randn(config.memory_tokens, options.dim)) if config.memory_tokens else None
        self.blocks = nn.ModuleList(EncoderBlock(attention, options=options, role=role) for attention in pattern)
        chained = [layer for layer in self.attention_layers() if layer.scope is Scope.LAYER and role is Role.ENCODER]
        for previous, layer in pairwise(chained):
            layer.chain_after(previous)
        self.norm = options.stack_norm()

    def attention_layers(self) -> list[Attention]:
        """Returns the attention layer of each block."""
        return [block.self_attention for block in self.blocks if isinstance(block, EncoderBlock)]

    def max_source_length(self, limit: int, *, further: int = 0) -> int:
        """Returns the maximum source length, at most `limit`, that fits into every layer with the memory tokens.

        `further` is the number of additional vectors that the model puts before the source.
        """
        memory_tokens = 0 if self.memory_ND is None else len(self.memory_ND)
        if not memory_tokens + further:
            return limit
        lengths = [layer.max_length for layer in self.attention_layers()]
        longest = min([limit, *(length - memory_tokens - further for length in lengths if length is not None)])
        if longest < 1:
            raise UserError(
                f"model.encoder.memory_tokens={memory_tokens} leaves no positions for the source.",
                f"Raise {ENCODER_SLOT}.max_length, which includes the memory tokens.",
            )
        return longest

    def forward(self, x_BSD: Tensor, *, pad_BS: Tensor | None, front_BFD: Tensor | None = None) -> Tensor:
        """Computes the output of the stack.

        Args:
            x_BSD: The source.
            pad_BS: True where the source is padding.
            front_BFD: Vectors to put before the source, after the stem.

        Returns:
            y_BSD, or y_B(F+S)D with `front_BFD`.
        """
        if self.stem is not None:
            x_BSD = self.stem(x_BSD, pad_BT=pad_BS)
        if front_BFD is not None:
            x_BSD = torch.cat([front_BFD, x_BSD], dim=1)
            pad_BS = None if pad_BS is None else functional.pad(pad_BS, (front_BFD.shape[1], 0), value=False)
        memory_tokens = 0
        if self.memory_ND is not None:
            memory_tokens = len(self.memory_ND)
            memory_BND = self.memory_ND.to(x_BSD.dtype).expand(len(x_BSD), -1, -1)
            x_BSD = torch.cat([memory_BND, x_BSD], dim=1)
            pad_BS = None if pad_BS is None else functional.pad(pad_BS, (memory_tokens, 0), value=False)
        state: State = None
        for index, block in enumerate(self.blocks):
            x_BSD, state = run_block(block, x_BSD, index=index, every=self.recompute_every, pad_BS=pad_BS, state=state)
        y_BSD: Tensor = self.norm(x_BSD)
        return y_BSD[:, memory_tokens:] if memory_tokens else y_BSD


class DecoderBlock(nn.Module):
    """A decoder block: causal self-attention, cross-attention (if there is an encoder), then feed-forward."""

    def __init__(
        self,
        attention: AttentionConfig,
        cross: AttentionConfig,
        *,
        options: BlockOptions,
        memory_dim: int | None,
        slot: str,
    ) -> None:
        super().__init__()
        self.self_attention: Attention = options.attention(attention, role=Role.CAUSAL, slot=slot)
        self.self_residual = options.residual()
        self.cross_attention: Attention | None = None
        if memory_dim is not None:
            self.cross_attention = options.attention(cross, role=Role.CROSS, slot=CROSS_SLOT, memory_dim=memory_dim)
            self.cross_residual = options.residual()
        self.feed_forward = options.feed_forward()
        self.ffn_residual = options.residual()

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
        skip: bool = False,
    ) -> tuple[Tensor, State]:
        """Returns the output of the block and the recurrent state of its self-attention for the next segment.

        Target rows are padded on the right, so the causal mask already hides their padding. With `skip` (LayerDrop),
        the output is the input, and the state is the same as without `skip`.
        """
        if skip:
            new_state = None
            if self.self_attention.scope is Scope.SEGMENT:
                with torch.no_grad():
                    _, new_state = self.self_attention(self.self_residual.pre(x_BTD), state=state)
            # This zero depends on every parameter, because data parallelism expects a gradient for each parameter.
            zero = torch.cat([parameter.flatten()[:1] for parameter in self.parameters()]).sum() * 0
            return x_BTD + zero, new_state
        y_BTD, new_state = self.self_attention(self.self_residual.pre(x_BTD), state=state)
        x_BTD = self.self_residual.post(x_BTD, y_BTD)
        if self.cross_attention is not None:
            y_BTD, _ = self.cross_attention(self.cross_residual.pre(x_BTD), memory_BSM, pad_BS=pad_BS)
            x_BTD = self.cross_residual.post(x_BTD, y_BTD)
        y_BTD = self.feed_forward(self.ffn_residual.pre(x_BTD))
        segmented = self.self_attention.scope is Scope.SEGMENT
        return self.ffn_residual.post(x_BTD, y_BTD), new_state if segmented else None

    def start(self, batch: int, memory_BSM: Tensor | None, *, pad_BS: Tensor | None) -> State:
        state = {"self": self.self_attention.start(batch)}
        if self.cross_attention is not None:
            state["cross"] = self.cross_attention.start(batch, memory_BSM, pad_BS=pad_BS)
        return state

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        new_state = {}
        y_B1D, new_state["self"] = self.self_attention.step(self.self_residual.pre(x_B1D), state["self"])
        x_B1D = self.self_residual.post(x_B1D, y_B1D)
        if self.cross_attention is not None:
            y_B1D, new_state["cross"] = self.cross_attention.step(self.cross_residual.pre(x_B1D), state["cross"])
            x_B1D = self.cross_residual.post(x_B1D, y_B1D)
        y_B1D = self.feed_forward(self.ffn_residual.pre(x_B1D))
        return self.ffn_residual.post(x_B1D, y_B1D), new_state


class Decoder(nn.Module):
    """A stack of decoder blocks, with a final norm if they are pre-norm.

    Without `memory_dim` it has no cross-attention. In training, each block is skipped with probability `layer_drop`
    (Fan et al. 2020, arXiv:1909.11556).
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        options: BlockOptions,
        memory_dim: int | None = None,
        layer_drop: float = 0.0,
        slot: str = "model.decoder.self_attention",
    ) -> None:
        super().__init__()
        self.layer_drop, self.recompute_every = layer_drop, options.recompute_every
        selves = layers_of(config.self_attention, config.layers, slot=slot)
        crosses = layers_of(config.cross_attention, config.layers, slot=CROSS_SLOT)
        self.blocks = nn.ModuleList(
            DecoderBlock(attention, cross, options=options, memory_dim=memory_dim, slot=slot)
            for attention, cross in zip(selves, crosses, strict=True)
        )
        self.norm = options.stack_norm()

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        """Returns (y_BTD, list of the recurrent state of each block). `state` is None for the first segment."""
        new_state = []
        for index, (block, block_state) in enumerate(zip(self.blocks, state or [None] * len(self.blocks), strict=True)):
            run = partial(run_block, block, index=index, every=self.recompute_every)
            drops = self.training and self.layer_drop > 0
            chosen = torch.rand(()) < self.layer_drop if drops else None
            # A compiled graph cannot branch, so it computes the block even if it is skipped.
            if chosen is not None and torch.compiler.is_compiling():
                y_BTD, block_state = run(x_BTD, memory_BSM, pad_BS=pad_BS, state=block_state)
                x_BTD = torch.where(chosen.to(x_BTD.device), x_BTD, y_BTD)
            else:
                skip = chosen is not None and bool(chosen)
                x_BTD, block_state = run(x_BTD, memory_BSM, pad_BS=pad_BS, state=block_state, skip=skip)
            new_state.append(block_state)
        return self.norm(x_BTD), new_state

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        return [block.start(batch, memory_BSM, pad_BS=pad_BS) for block in self.blocks]  # type: ignore[operator]

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        new_state = []
        for block, block_state in zip(self.blocks, state, strict=True):
            x_B1D, block_state = block.step(x_B1D, block_state)  # type: ignore[operator]
            new_state.append(block_state)
        return self.norm(x_B1D), new_state
