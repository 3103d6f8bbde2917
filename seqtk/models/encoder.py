"""The encoder of a Transformer: blocks of attention and feed-forward, any attention in each of them.

B batch, S source length, D width of the stack, N memory tokens.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention import Attention, AttentionConfig, CarryingAttention, Role
from seqtk.models.stacks import BlockOptions, StackConfig, layers_of
from seqtk.modules.stem import ConvolutionalStem
from seqtk.ops.rows import align
from seqtk.utils.errors import UserError

SLOT = "model.encoder.self_attention"


@dataclass(frozen=True)
class EncoderConfig(StackConfig):
    """The blocks that read the source."""

    memory_tokens: int = 0  # trained vectors in front of the source, in all blocks, and dropped at the end
    stem_layers: int = 0  # convolutions before the first block
    stem_kernel_size: int = 3  # odd


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, attention: AttentionConfig, *, options: BlockOptions) -> None:
        super().__init__()
        self.self_attention: Attention = options.attention(attention, role=Role.ENCODER, slot=SLOT)
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
        carrying = [
            block.self_attention for block in self.blocks if isinstance(block.self_attention, CarryingAttention)
        ]
        for before, layer in pairwise(carrying):
            layer.follow(before)
        self.norm = options.closing_norm()

    def longest_beside_memory(self, limit: int) -> int:
        """The longest source, `limit` at most, that fits into every layer together with the memory tokens."""
        if self.memory_ND is None:
            return limit
        lengths = [block.self_attention.max_length for block in self.blocks if isinstance(block, EncoderBlock)]
        longest = min([limit, *(length - len(self.memory_ND) for length in lengths if length is not None)])
        if longest < 1:
            raise UserError(
                f"model.encoder.memory_tokens={len(self.memory_ND)} leave no room for a source.",
                f"Raise {SLOT}.max_length: it counts them, too.",
            )
        return longest

    def forward(self, x_BSD: Tensor, *, pad_BS: Tensor | None, positions_BS: Tensor | None = None) -> Tensor:
        if self.stem is not None:
            x_BSD = self.stem(x_BSD, pad_BT=pad_BS)
        if self.memory_ND is None:
            return self._blocks(x_BSD, pad_BS=pad_BS, positions_BS=positions_BS)
        # Memory stands right before the first token, so rows have to begin at the left edge.
        rows = align(x_BSD, pad_BS, right_padded=positions_BS is None)
        memory_BND = self.memory_ND.to(x_BSD.dtype).expand(len(x_BSD), -1, -1)
        pad_BT = None if rows.pad_BT is None else functional.pad(rows.pad_BT, (len(self.memory_ND), 0), value=False)
        y_BTD = self._blocks(torch.cat([memory_BND, rows.x_BTD], dim=1), pad_BS=pad_BT, positions_BS=None)
        return rows.restore(y_BTD[:, len(self.memory_ND) :])

    def _blocks(self, x_BSD: Tensor, *, pad_BS: Tensor | None, positions_BS: Tensor | None) -> Tensor:
        carried: Tensor | None = None
        for block in self.blocks:
            x_BSD, carried = block(x_BSD, carried, pad_BS=pad_BS, positions_BS=positions_BS)
        return self.norm(x_BSD)  # type: ignore[no-any-return]
