"""The encoder of a Transformer: blocks of attention and feed-forward, any attention in each of them.

B batch, S source length, D width of the stack, N memory tokens.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention import Attention, AttentionConfig, Role, Scope, State
from seqtk.config.fields import setting
from seqtk.models.stacks import BlockOptions, StackConfig, layers_of
from seqtk.modules.stem import ConvolutionalStem
from seqtk.utils.errors import UserError

SLOT = "model.encoder.self_attention"


@dataclass(frozen=True)
class EncoderConfig(StackConfig):
    """The blocks that read the source."""

    memory_tokens: int = setting(
        0, at_least=0, help="Learned vectors before the source in all blocks, removed at the end."
    )
    stem_layers: int = setting(0, at_least=0, help="Convolutions before the first block.")
    stem_kernel_size: int = setting(3, at_least=1, help="Kernel size of these convolutions; odd.")


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, attention: AttentionConfig, *, options: BlockOptions) -> None:
        super().__init__()
        self.self_attention: Attention = options.attention(attention, role=Role.ENCODER, slot=SLOT)
        self.self_residual = options.residual()
        self.feed_forward = options.feed_forward()
        self.ffn_residual = options.residual()

    def forward(self, x_BSD: Tensor, *, pad_BS: Tensor | None, state: State = None) -> tuple[Tensor, State]:
        """Returns the output of the block and the state for the next block."""
        attention = self.self_attention
        takes_state = attention.scope is Scope.LAYER
        y_BSD, new_state = attention(self.self_residual.pre(x_BSD), pad_BS=pad_BS, state=state if takes_state else None)
        x_BSD = self.self_residual.post(x_BSD, y_BSD)
        y_BSD = self.feed_forward(self.ffn_residual.pre(x_BSD))
        return self.ffn_residual.post(x_BSD, y_BSD), new_state if takes_state else state


class Encoder(nn.Module):
    """A stack of encoder blocks, with a final norm if they normalise first.

    `memory_tokens` makes it a Memory Transformer (Burtsev et al. 2020, arXiv 2006.11527, section 3): trained vectors go
    before the source, attend and are attended to like it, and are left out of what the encoder returns.
    """

    def __init__(self, config: EncoderConfig, *, options: BlockOptions) -> None:
        super().__init__()
        pattern = layers_of(config.self_attention, config.layers, slot=SLOT)
        self.stem = (
            ConvolutionalStem(options.dim, layers=config.stem_layers, kernel_size=config.stem_kernel_size)
            if config.stem_layers
            else None
        )
        if config.memory_tokens < 0:
            raise UserError(f"model.encoder.memory_tokens={config.memory_tokens} cannot be negative.")
        self.memory_ND = nn.Parameter(torch.randn(config.memory_tokens, options.dim)) if config.memory_tokens else None
        self.blocks = nn.ModuleList(EncoderBlock(attention, options=options) for attention in pattern)
        chained = [layer for layer in self.attention_layers() if layer.scope is Scope.LAYER]
        for previous, layer in pairwise(chained):
            layer.chain_after(previous)
        self.norm = options.stack_norm()

    def attention_layers(self) -> list[Attention]:
        """The attention layer of each block."""
        return [block.self_attention for block in self.blocks if isinstance(block, EncoderBlock)]

    def max_source_length(self, limit: int) -> int:
        """The longest source that fits into every layer together with the memory tokens; `limit` at most."""
        if self.memory_ND is None:
            return limit
        lengths = [layer.max_length for layer in self.attention_layers()]
        longest = min([limit, *(length - len(self.memory_ND) for length in lengths if length is not None)])
        if longest < 1:
            raise UserError(
                f"model.encoder.memory_tokens={len(self.memory_ND)} leave no room for a source.",
                f"Raise {SLOT}.max_length: it counts them, too.",
            )
        return longest

    def forward(self, x_BSD: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        if self.stem is not None:
            x_BSD = self.stem(x_BSD, pad_BT=pad_BS)
        memory_tokens = 0
        if self.memory_ND is not None:
            memory_tokens = len(self.memory_ND)
            memory_BND = self.memory_ND.to(x_BSD.dtype).expand(len(x_BSD), -1, -1)
            x_BSD = torch.cat([memory_BND, x_BSD], dim=1)
            pad_BS = None if pad_BS is None else functional.pad(pad_BS, (memory_tokens, 0), value=False)
        state: State = None
        for block in self.blocks:
            x_BSD, state = block(x_BSD, pad_BS=pad_BS, state=state)
        y_BSD: Tensor = self.norm(x_BSD)
        return y_BSD[:, memory_tokens:] if memory_tokens else y_BSD
