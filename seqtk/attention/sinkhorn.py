"""Sparse Sinkhorn attention to the query's block and to a sorted block (Tay et al. 2020, arXiv 2002.11296).

B batch, T length, D width of the layer, H heads, E width of a head, N blocks of C positions, M = B N, K = 2 C keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.attention.base import Role, State, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.dot_product import attend
from seqtk.ops.tensors import in_blocks, padding_or_zeros


@dataclass(frozen=True)
class SinkhornConfig(QKVConfig):
    """Attention to two blocks, one sorted: 4 D² + H D max_length / block weights, O(T (block + T / block) D) time."""

    block: int = setting(64, at_least=1, help="Positions in a block.")
    max_length: int = setting(
        1024, at_least=1, help="Longest input. The sorting network has one output per block of an input of this length."
    )
    iterations: int = setting(7, at_least=1, help="Normalizations of the sorting matrix, each of columns, then rows.")
    temperature: float = setting(
        0.75, above=0, help="Temperature of the sorting matrix. Lower values bring it closer to a permutation."
    )
    gumbel: bool = setting(True, help="Add Gumbel noise to the sorting in training.")


@attentions.register("sinkhorn", SinkhornConfig)
class SinkhornAttention(HeadedAttention):
    """Attention to the query's block and to a sorted block: softmax(Q [K; K̂]ᵀ / √E) [V; V̂] in each block.

    K̂ and V̂ are keys and values that a matrix P per head mixes from all blocks. The logits of P for block i and each
    block j are a linear map of the sum of the inputs in block i (section 3.1). In training, Gumbel noise is added.
    The logits are divided by `temperature` and exponentiated. Then columns and rows are alternately normalized to sum
    1, in log space, rows last (section 3.2). Block i gets K̂_i = Σ_j P_ij K_j and V̂_i = Σ_j P_ij V_j (section 3.3).

    The paper does not define the sorting of a last block that is not full. In seqtk, a sorted position is the mean,
    weighted by P_ij, over the blocks j that have this position. The log of the sum of these P_ij is added to its logit,
    so one block for the whole row is full attention.

    ENCODER only. The paper's causal form masks P before it is normalized, but columns are then normalized over later
    blocks, which reveals the future. Also, the only lower triangular matrix whose columns and rows sum to 1 is the
    identity, so a better normalized matrix sorts less.

    Parameters: 4 D² + D H ceil(max_length / C) (+ 4 D + H ceil(max_length / C) bias). O(T C D + T (T / C) D) time, O(T
    (C H + D) + (T / C)² H) memory.
    """

    roles = Role.ENCODER

    def __init__(self, config: SinkhornConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.add_projections()
        self.sort = self.projection(dim, self.heads * -(-config.max_length // config.block))

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        length = x_BTD.shape[1]
        self.check_length(length)
        pad_BT = padding_or_zeros(x_BTD, pad_BS)
        block = min(self.config.block, length)
        real_BNC = ~in_blocks(pad_BT, block, fill=True)
        query_MHCE, key_MHCE, value_MHCE = (
            self.split(in_blocks(linear(x_BTD), block).flatten(0, 1)) for linear in (self.query, self.key, self.value)
        )
        with torch.autocast(x_BTD.device.type, enabled=False):
            sorting_BHNN = self.sorting(x_BTD.masked_fill(pad_BT[..., None], 0), real_BNC)
            share_BHNC = sorting_BHNN @ real_BNC[:, None].to(sorting_BHNN.dtype)
            exists_BHNC = share_BHNC > 0
            share_BHNC = torch.where(exists_BHNC, share_BHNC, 1)
            sorted_key, sorted_value = (
                _sorted(y_MHCE.to(share_BHNC.dtype), sorting_BHNN, real_BNC) / _fold(share_BHNC)[..., None]
                for y_MHCE in (key_MHCE, value_MHCE)
            )
            bias_BHNC = torch.where(exists_BHNC, share_BHNC.log(), -torch.inf)
        own_MHC = torch.where(real_BNC.flatten(0, 1)[:, None], 0.0, -torch.inf).expand(-1, self.heads, -1)
        y_MHCE = attend(
            query_MHCE,
            torch.cat([key_MHCE, sorted_key.to(key_MHCE.dtype)], 2),
            torch.cat([value_MHCE, sorted_value.to(value_MHCE.dtype)], 2),
            bias=torch.cat([own_MHC, _fold(bias_BHNC)], 2)[:, :, None],
            dropout=self.active_dropout,
        )
        y_BTD = self.join(y_MHCE).view(len(x_BTD), -1, self.dim)[:, :length]
        return self.out(y_BTD.masked_fill(pad_BT[..., None], 0)), None

    def sorting(self, x_BTD: Tensor, real_BNC: Tensor) -> Tensor:
        """Returns the sorting matrices P_BHNN, in float32 or wider. They are 0 for blocks that are all padding.

        `x` must be 0 at padding.
        """
        batch, blocks, block = real_BNC.shape
        sums_BND = in_blocks(x_BTD.to(self.sort.weight.dtype), block).sum(2)
        logits_BNHN = self.sort(sums_BND).view(batch, blocks, self.heads, -1)[..., :blocks]
        if self.training and self.config.gumbel:
            # torch.compile would merge the draws of several calls into one if this used empty_like.
            noise_BNHN = torch.empty(logits_BNHN.shape, dtype=logits_BNHN.dtype, device=logits_BNHN.device)
            logits_BNHN = logits_BNHN - noise_BNHN.exponential_().log()
        logits_BHNN = logits_BNHN.transpose(1, 2) / self.config.temperature
        return sinkhorn(logits_BHNN, real_BNC.any(2), iterations=self.config.iterations)


def sinkhorn(logits_BHNN: Tensor, present_BN: Tensor, *, iterations: int) -> Tensor:
    """Returns exp(logits) after `iterations` normalizations of columns, then rows, among the present blocks."""
    absent_B1NN = ~(present_BN[:, None, :, None] & present_BN[:, None, None, :])
    lowest = torch.finfo(logits_BHNN.dtype).min / 4  # finite, so that no row becomes NaN
    logits_BHNN = logits_BHNN.masked_fill(absent_B1NN, lowest)
    for _ in range(iterations):
        for dim in (-2, -1):
            logits_BHNN = logits_BHNN - logits_BHNN.logsumexp(dim, keepdim=True)
            logits_BHNN = logits_BHNN.masked_fill(absent_B1NN, lowest)
    return logits_BHNN.exp()


def _sorted(y_MHCE: Tensor, sorting_BHNN: Tensor, real_BNC: Tensor) -> Tensor:
    """Returns the sorted blocks Σ_j P_ij y_j, MHCE. The sums are over real positions."""
    batch, heads, blocks, _ = sorting_BHNN.shape
    y_MHCE = y_MHCE.masked_fill(~real_BNC.flatten(0, 1)[:, None, :, None], 0)
    y_BHNCE = y_MHCE.reshape(batch, blocks, heads, *y_MHCE.shape[2:]).transpose(1, 2)
    y_BHNF = sorting_BHNN @ y_BHNCE.flatten(3)
    return _fold(y_BHNF.view(y_BHNCE.shape))


def _fold(x_BHN: Tensor) -> Tensor:
    """Merges batch and blocks: x_BHN becomes x_MH. Later dimensions are kept."""
    return x_BHN.transpose(1, 2).flatten(0, 1)
