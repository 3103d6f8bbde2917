"""Attention to a query's own block and one that is sorted to it (Tay et al. 2020, Sparse Sinkhorn, arXiv 2002.11296).

B batch, T length, D width of the layer, H heads, E width of a head, N blocks of C positions, M = B N, K = 2 C keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.attention.base import Role, attentions
from seqtk.attention.qkv import QKVConfig
from seqtk.attention.windows import NearAttention
from seqtk.config.fields import setting
from seqtk.ops.block_pattern import absent
from seqtk.ops.blocks import in_blocks
from seqtk.ops.dot_product import attend
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class SinkhornConfig(QKVConfig):
    """Own block and a sorted one: 4 D² + H D max_length / block weights, O(T (block + T / block) D) time."""

    block: int = setting(64, at_least=1, help="Positions in a block.")
    max_length: int = setting(1024, at_least=1, help="The longest input. The sorting network has this many positions.")
    iterations: int = setting(7, at_least=1, help="Iterations of the normalization of columns and rows.")
    temperature: float = setting(
        0.75, above=0, help="Temperature of the sorting. Lower values come closer to a permutation."
    )
    gumbel: bool = setting(True, help="Add noise to the sorting in training.")


@attentions.register("sinkhorn", SinkhornConfig)
class SinkhornAttention(NearAttention):
    """softmax(Q [K; K̂]ᵀ / √E) [V; V̂] within blocks, K̂ and V̂ being the keys and values of other blocks, sorted to it.

    A block's logits of the blocks it may get are a linear map of the sum of its positions (section 3.1), a head each.
    Divided by `temperature` and exponentiated, with Gumbel noise while training, columns and rows are made to sum to 1
    by turns, in log space, rows last (section 3.2): P. Block i gets K̂_i = Σ_j P_ij K_j, likewise V̂ (section 3.3); one
    softmax goes over both. Where some of the C places of a row's last block are empty, the mean at a place is over the
    blocks that have it, and log(their share of P_i) is added to its logits; so what is sorted weighs what it holds, and
    a block that holds everything sees it as full attention does.

    ENCODER alone. The paper's causal form masks P before it is normalised; but columns are then normalised over later
    blocks, which tells of the future, and the one matrix with columns and rows of 1 that is nowhere above the diagonal
    is the identity, so that the better it is normalised the less it sorts.

    Parameters: 4 D² + D H ceil(max_length / C) (+ 4 D + H ceil(max_length / C) bias). O(T C D + T (T / C) D) time,
    O(T (C H + D) + (T / C)² H) memory.
    """

    roles = Role.ENCODER
    subquadratic = False

    def __init__(self, config: SinkhornConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.temperature <= 0:
            raise UserError(f"attention.temperature={config.temperature} must be above 0.")
        self.sort = self.projection(dim, self.heads * _most_blocks(config))

    @property
    def max_length(self) -> int | None:
        return int(self.config.max_length)

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        absent_BT = absent(x_BTD, pad_BT)
        length = x_BTD.shape[1]
        block = min(self.config.block, length)
        real_BNC = ~in_blocks(absent_BT, block, fill=True)
        query_MHCE, key_MHCE, value_MHCE = (
            self.split(in_blocks(projection(x_BTD), block).flatten(0, 1))
            for projection in (self.query, self.key, self.value)
        )
        with torch.autocast(x_BTD.device.type, enabled=False):
            sorting_BHNN = self.sorting(x_BTD.masked_fill(absent_BT[..., None], 0), real_BNC)
            share_BHNC = sorting_BHNN @ real_BNC[:, None].to(sorting_BHNN.dtype)
            has_BHNC = share_BHNC > 0
            share_BHNC = torch.where(has_BHNC, share_BHNC, 1)
            sorted_key, sorted_value = (
                _sorted(y_MHCE.to(share_BHNC.dtype), sorting_BHNN, real_BNC) / _fold(share_BHNC)[..., None]
                for y_MHCE in (key_MHCE, value_MHCE)
            )
            bias_BHNC = torch.where(has_BHNC, share_BHNC.log(), -torch.inf)
        own_MHC = torch.where(real_BNC.flatten(0, 1)[:, None], 0.0, -torch.inf).expand(-1, self.heads, -1)
        y_MHCE = attend(
            query_MHCE,
            torch.cat([key_MHCE, sorted_key.to(key_MHCE.dtype)], 2),
            torch.cat([value_MHCE, sorted_value.to(value_MHCE.dtype)], 2),
            bias=torch.cat([own_MHC, _fold(bias_BHNC)], 2)[:, :, None],
            dropout=self.active_dropout,
        )
        return self.join(y_MHCE).view(len(x_BTD), -1, self.dim)[:, :length]

    def sorting(self, x_BTD: Tensor, real_BNC: Tensor) -> Tensor:
        """P_BHNN, float32 or wider, of rows that are 0 where they have no position; 0 for blocks that have none."""
        batch, blocks, block = real_BNC.shape
        sums_BND = in_blocks(x_BTD.to(self.sort.weight.dtype), block).sum(2)
        logits_BNHN = self.sort(sums_BND).view(batch, blocks, self.heads, -1)[..., :blocks]
        if self.training and self.config.gumbel:
            logits_BNHN = logits_BNHN - torch.empty_like(logits_BNHN).exponential_().log()
        return normalised(
            logits_BNHN.transpose(1, 2) / self.config.temperature, real_BNC.any(2), iterations=self.config.iterations
        )


def normalised(logits_BHNN: Tensor, present_BN: Tensor, *, iterations: int) -> Tensor:
    """exp(logits), columns, then rows, divided by their sums, `iterations` times; among the blocks present alone."""
    absent_B1NN = ~(present_BN[:, None, :, None] & present_BN[:, None, None, :])
    lowest = torch.finfo(logits_BHNN.dtype).min / 4  # finite, lest a row of these be NaN
    logits_BHNN = logits_BHNN.masked_fill(absent_B1NN, lowest)
    for _ in range(iterations):
        for dim in (-2, -1):
            logits_BHNN = logits_BHNN - logits_BHNN.logsumexp(dim, keepdim=True)
            logits_BHNN = logits_BHNN.masked_fill(absent_B1NN, lowest)
    return logits_BHNN.exp()


def _sorted(y_MHCE: Tensor, sorting_BHNN: Tensor, real_BNC: Tensor) -> Tensor:
    """Σ_j P_ij y_j over what is real, as MHCE."""
    batch, heads, blocks, _ = sorting_BHNN.shape
    y_MHCE = y_MHCE.masked_fill(~real_BNC.flatten(0, 1)[:, None, :, None], 0)
    y_BHNCE = y_MHCE.reshape(batch, blocks, heads, *y_MHCE.shape[2:]).transpose(1, 2)
    y_BHNF = sorting_BHNN @ y_BHNCE.flatten(3)
    return _fold(y_BHNF.view(y_BHNCE.shape))


def _fold(x_BHN: Tensor) -> Tensor:
    """x_MH (and any dimensions after N)."""
    return x_BHN.transpose(1, 2).flatten(0, 1)


def _most_blocks(config: SinkhornConfig) -> int:
    return -(-config.max_length // config.block)
