"""BigBird: attention to near, global and random blocks (Zaheer et al. 2020, arXiv 2007.14062, section 2, appendix D).

B batch, T length, S key length, D width of the layer, H heads, E width of a head, N blocks of C positions, P blocks
that a block sees, K = P C, R random blocks, M = B H N.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.attention.base import Role, attentions
from seqtk.attention.headwise import HeadwiseAttention
from seqtk.attention.qkv import QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.dot_product import attend
from seqtk.ops.tensors import in_blocks, padding_or_zeros, zero_padding


@dataclass(frozen=True)
class BigBirdConfig(QKVConfig):
    """Attention to near, global and random blocks: 4 D² weights, O(T block (3 + global_blocks + random_blocks) D)."""

    block: int = setting(64, at_least=1, help="Positions in a block.")
    global_blocks: int = setting(
        1, at_least=1, help="Number of global blocks: the first blocks, which see all positions and are seen by all."
    )
    random_blocks: int = setting(3, at_least=1, help="Number of random blocks that each block sees, drawn per head.")
    seed: int = setting(
        0, at_least=0, help="Seed of the random blocks. Layers with different seeds see different blocks."
    )


@attentions.register("bigbird", BigBirdConfig)
class BigBirdAttention(HeadwiseAttention):
    """Attention to the query's block, its neighbors, G global blocks and R random blocks.

    A query's output is softmax(Q Kᵀ / √E) V over the positions of these blocks. The global blocks are the first blocks
    of the row (the paper's ITC variant). The paper stores its random blocks in a table. seqtk computes them from
    (`seed`, head, block) and the number of blocks of the row, so they exist at every length: the blocks that are
    neither near nor global are split into R equal ranges, and a 32-bit hash picks one block per range.

    Parameters: 4 D² (+ 4 D bias). O(T C (3 + G + R) D) time and memory. ENCODER only: the paper has no causal form.
    """

    roles = Role.ENCODER
    subquadratic = True

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        length = query_BHTE.shape[2]
        pad_BT = padding_or_zeros(self.join(query_BHTE), pad_BS)
        first = min(self.config.global_blocks * self.config.block, length)
        y_BHTE = attend(
            query_BHTE[:, :, :first], key_BHSE, value_BHSE, bias=~pad_BT[:, None, None], dropout=self.active_dropout
        )
        if first < length:
            other_BHTE = self._attend_in_blocks(heads, query_BHTE, key_BHSE, value_BHSE, pad_BT)
            y_BHTE = torch.cat([y_BHTE, other_BHTE[:, :, first:length]], dim=2)
        return zero_padding(y_BHTE, pad_BS)

    def _attend_in_blocks(
        self, heads: slice, query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, pad_BT: Tensor
    ) -> Tensor:
        """Returns the output of each position, computed from the blocks that its block sees.

        The outputs of global positions are wrong, because they see all keys. The caller discards them.
        """
        index_BHNP, seen_BHNK = self._seen_blocks(heads, pad_BT)

        def keys(x_BHTE: Tensor) -> Tensor:
            return _gather_blocks(in_blocks(x_BHTE, self.config.block, dim=2), index_BHNP).flatten(1, 2)[:, None]

        query_M1CE = in_blocks(query_BHTE, self.config.block, dim=2).flatten(0, 2)[:, None]
        seen_M11K = seen_BHNK.flatten(0, 2)[:, None, None]
        y_M1CE = attend(query_M1CE, keys(key_BHTE), keys(value_BHTE), bias=seen_M11K, dropout=self.active_dropout)
        return y_M1CE.view(*query_BHTE.shape[:2], -1, query_BHTE.shape[3])

    def _seen_blocks(self, heads: slice, pad_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the indices of the blocks that each block sees, BHNP, and a mask of their visible positions, BHNK."""
        config, device = self.config, pad_BT.device
        real_BNC = ~in_blocks(pad_BT, config.block, fill=True)
        batch, blocks = real_BNC.shape[:2]
        random_BHNR, chosen_BHNR = self._random_blocks(heads, (~pad_BT).sum(1), blocks)
        near_N3 = torch.arange(blocks, device=device)[:, None] + torch.arange(-1, 2, device=device)
        # A near block that is global counts once, as global.
        is_near_N3 = (near_N3 >= config.global_blocks) & (near_N3 < blocks)
        global_NG = torch.arange(min(config.global_blocks, blocks), device=device).expand(blocks, -1)
        fixed_NF = torch.cat([near_N3.clamp(0, blocks - 1), global_NG], 1)
        is_fixed_NF = torch.cat([is_near_N3, torch.ones_like(global_NG, dtype=torch.bool)], 1)
        shape = (*random_BHNR.shape[:3], -1)
        index_BHNP = torch.cat([fixed_NF.expand(shape), random_BHNR], 3)
        is_seen_BHNP = torch.cat([is_fixed_NF.expand(shape), chosen_BHNR], 3)
        row_B111 = torch.arange(batch, device=device)[:, None, None, None]
        return index_BHNP, (real_BNC[row_B111, index_BHNP] & is_seen_BHNP[..., None]).flatten(3)

    def _random_blocks(self, heads: slice, length_B: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """Returns the indices of the random blocks, BHNR, and a mask BHNR, False where a row has too few blocks."""
        config, device = self.config, length_B.device
        block_N1 = torch.arange(blocks, device=device)[:, None]
        range_R = torch.arange(config.random_blocks, device=device)
        head_H11 = torch.arange(self.heads, device=device)[heads, None, None]
        last_B111 = (-(-length_B // config.block) - 1)[:, None, None, None]
        near_from = (block_N1 - 1).clamp(min=config.global_blocks)
        near_count = (torch.minimum(block_N1 + 1, last_B111) - near_from + 1).clamp(min=0)
        count = (last_B111 + 1 - config.global_blocks - near_count).clamp(min=0)  # the number of blocks to choose from
        noise_HNR = hash32(
            hash32(hash32(hash32(torch.zeros_like(head_H11) + config.seed) + head_H11) + block_N1) + range_R
        )
        index_BHNR = ((range_R << 32) + noise_HNR) * count // (config.random_blocks << 32)
        again_BHNR = torch.zeros_like(index_BHNR, dtype=torch.bool)
        again_BHNR[..., 1:] = index_BHNR[..., 1:] == index_BHNR[..., :-1]
        place_BHNR = index_BHNR + config.global_blocks
        place_BHNR = place_BHNR + near_count * (place_BHNR >= near_from)  # skip the near blocks
        return place_BHNR.clamp(max=blocks - 1), (count > 0) & ~again_BHNR


def hash32(x: Tensor) -> Tensor:
    """Returns a 32-bit hash of the lowest 32 bits of each integer: two rounds of shift, XOR and multiplication."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _gather_blocks(x_BHNCE: Tensor, index_BHNP: Tensor) -> Tensor:
    """Returns x_MPCE: for each block, copies of the P blocks at its indices."""
    batch, heads, blocks, picks = index_BHNP.shape
    before_BH11 = torch.arange(0, batch * heads * blocks, blocks, device=index_BHNP.device).view(batch, heads, 1, 1)
    place_I = (before_BH11 + index_BHNP).flatten()
    picked_IF = x_BHNCE.flatten(0, 2).flatten(1).index_select(0, place_I)
    return picked_IF.view(-1, picks, *x_BHNCE.shape[3:])
