"""LSH attention: softmax(q_t · k_s / √E) v_s over the positions s that share a hash bucket with t in some round.

k_s = q_s / |q_s|. A position attends to itself only if it sees no other position (Kitaev et al. 2020, arXiv 2001.04451,
section 2). A pair found in several rounds counts once: there is one softmax over the union of the rounds.

Where it runs: an autograd function on every device, without dropout. With dropout and under torch.compile, torch
differentiates the same operations and keeps all weights. The autograd function keeps the logarithm of each softmax's
denominator, from which the backward pass computes each weight again. On a CPU it processes about CHUNK_LOGITS logits at
a time, on other devices all logits of a round. The naive form compares all pairs of a sequence.

X rows: the positions of all heads and sequences; B batch, T length, H heads, E width of a head; R rounds. For a group
of chunks: N chunks of C rows, P = N C rows, W rows including the chunk before them, K keys that a chunk sees.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.dropout import dropout as apply_dropout

SELF_MASK_VALUE = -1e30
"""A position's logit for itself. It is so low that it matters only if the position sees no other position."""

CHUNK_LOGITS = {"cpu": 2**19}
"""Device type → number of logits in memory at a time. Other devices process a whole round."""


class Chunks(NamedTuple):
    """Consecutive chunks of one round of hashing: the rows of their queries and keys."""

    query_P: Tensor  # rows
    key_W: Tensor  # rows
    unseen_NCK: Tensor


@dataclass(frozen=True)
class HashRounds:
    """The sorted order of the rows in each round of hashing, and the pairs of rows that share a bucket.

    Rows are sorted by sequence and head, then by bucket, then by position. Rows of different sequences, heads or
    buckets do not see each other.
    """

    order_RX: Tensor
    """The rows in sorted order."""
    code_RX: Tensor
    """A code per row. A query sees a key if query code - key code is in 0 … reach - 1."""
    reach: int
    chunk: int
    before: int
    """The number of sorted positions before a chunk that it sees: `chunk`, or 0 if no sequence exceeds a chunk."""
    shape_BTH: tuple[int, int, int]
    """Batch, length and heads: X = B T H, in this order."""

    @classmethod
    def sort(cls, bucket_BHRT: Tensor, *, chunk: int, causal: bool) -> "HashRounds":
        """Sorts positions by bucket. `chunk` must divide T. Row numbers are indices of x_BTHE.flatten(0, 2)."""
        batch, heads, _, length = bucket_BHRT.shape
        bucket_RBHT, order_RBHT = bucket_BHRT.permute(2, 0, 1, 3).sort(stable=True)
        first_BHT = torch.arange(batch * heads * length, device=bucket_BHRT.device).view(batch, length, heads)
        order_RX = (order_RBHT * heads + first_BHT[:, 0, :, None]).flatten(1)
        sequence_BH1 = torch.arange(batch * heads, device=bucket_BHRT.device).view(batch, heads, 1)
        key_RX = (bucket_RBHT + sequence_BH1 * (bucket_BHRT.max() + 1)).flatten(1)
        place_X = torch.arange(order_RX.shape[1], device=bucket_BHRT.device)
        reach = chunk if causal else 2
        code_RX = (place_X if causal else place_X // chunk) + key_RX * reach
        code_RX = torch.empty_like(code_RX).scatter_(1, order_RX, code_RX).int()
        return cls(order_RX, code_RX, reach, chunk, chunk if length > chunk else 0, (batch, length, heads))

    def pieces(self) -> Iterator[Chunks]:
        """Yields groups of chunks of all rounds. A pair of positions is seen only in the first round that finds it."""
        rounds, rows = self.order_RX.shape
        size = rows
        if self.order_RX.device.type in CHUNK_LOGITS and not torch.compiler.is_compiling():
            most = CHUNK_LOGITS[self.order_RX.device.type] // (self.chunk + self.before)
            size = max(most // self.chunk, 1) * self.chunk
        for number in range(rounds):
            order_X = self.order_RX[number]
            # The last chunk precedes the first one. It belongs to another sequence, so it is not seen.
            order_X = torch.cat([order_X[rows - self.before :], order_X])
            for first in range(0, rows, size):
                key_W = order_X[first : first + size + self.before]
                yield Chunks(key_W[self.before :], key_W, self._unseen(self.code_RX[: number + 1, key_W]))

    def _unseen(self, code_RW: Tensor) -> Tensor:
        """Returns unseen_NCK: True for pairs that an earlier round or no round finds, and for pairs t = s."""
        *earlier, last_W = code_RW
        unseen_NCK = self._distance(last_W) >= self.reach
        for code_W in earlier:
            unseen_NCK |= self._distance(code_W) < self.reach
        unseen_NCK.diagonal(self.before, 1, 2).fill_(True)
        return unseen_NCK

    def _distance(self, code_W: Tensor) -> Tensor:
        """Returns |2 (query code - key code) - (reach - 1)|, which is below `reach` exactly if the key is seen."""
        code_W = code_W * 2
        query_NC1 = code_W[self.before :].view(-1, self.chunk, 1) - (self.reach - 1)
        return (query_NC1 - self.windows(code_W)[:, None]).abs_()

    def windows(self, x_W: Tensor) -> Tensor:
        """Returns each chunk together with the chunk before it: x_NK from x_W, or x_NEK from x_WE."""
        return x_W.unfold(0, self.before + self.chunk, self.chunk)

    def chunks(self, x_P: Tensor) -> Tensor:
        """Splits the first dimension into chunks: x_P becomes x_NC. Later dimensions are kept."""
        return x_P.view(-1, self.chunk, *x_P.shape[1:])

    def by_key(self, weight_NCK: Tensor, x_NCE: Tensor) -> Tensor:
        """Returns x_WE, the weighted sum over queries for each key."""
        places = x_NCE.shape[0] * self.chunk
        sum_WE = x_NCE.new_zeros(self.before + places, x_NCE.shape[2])
        for first in {0, self.before}:
            part_NCC = weight_NCK[..., first : first + self.chunk]
            self.chunks(sum_WE[first : first + places]).baddbmm_(part_NCC.mT, x_NCE)
        return sum_WE


def naive(query_XE: Tensor, value_XE: Tensor, rounds: HashRounds, *, dropout: float = 0.0) -> Tensor:
    """Computes the attention from the weights of all pairs of positions of a sequence."""
    query_BHTE, value_BHTE = (x.view(*rounds.shape_BTH, -1).transpose(1, 2) for x in (query_XE, value_XE))
    key_BHSE = functional.normalize(query_BHTE, dim=-1)
    logits_BHTS = query_BHTE @ key_BHSE.mT / math.sqrt(query_BHTE.shape[-1])
    code_RBHT = rounds.code_RX.view(-1, *rounds.shape_BTH).transpose(2, 3)
    difference_RBHTS = code_RBHT[..., :, None] - code_RBHT[..., None, :]
    found_BHTS = ((difference_RBHTS >= 0) & (difference_RBHTS < rounds.reach)).any(0)
    itself_TS = torch.eye(query_BHTE.shape[2], dtype=torch.bool, device=query_XE.device)
    logits_BHTS = logits_BHTS.masked_fill(~found_BHTS, torch.finfo(logits_BHTS.dtype).min)
    weights_BHTS = logits_BHTS.masked_fill(itself_TS, SELF_MASK_VALUE).softmax(-1)
    if dropout:
        weights_BHTS = torch.where(itself_TS, weights_BHTS, apply_dropout(weights_BHTS, dropout))
    return (weights_BHTS @ value_BHTE).transpose(1, 2).reshape(value_XE.shape)


def lsh_attention(query_XE: Tensor, value_XE: Tensor, rounds: HashRounds, *, dropout: float = 0.0) -> Tensor:
    """Returns the attention outputs, y_XE. Call it outside autocast: large logits need float32 precision."""
    if naive_mode():
        return naive(query_XE, value_XE, rounds, dropout=dropout)
    if dropout or torch.compiler.is_compiling():
        return _attention(query_XE, value_XE, rounds, dropout)[0]
    y_XE: Tensor = _LshAttention.apply(query_XE, value_XE, rounds)  # type: ignore[no-untyped-call]
    return y_XE


def _key_sizes(query_XE: Tensor) -> Tensor:
    """Returns |q| √E, the divisor that turns a query into its key."""
    length_X1: Tensor = torch.linalg.vector_norm(query_XE, dim=1, keepdim=True)
    return length_X1.clamp(min=1e-12) * math.sqrt(query_XE.shape[1])


def _attention(query_XE: Tensor, value_XE: Tensor, rounds: HashRounds, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns the attention outputs, y_XE, and total_X1, the logarithm of the softmax's denominator."""
    lowest, tiny = torch.finfo(query_XE.dtype).min / 2, torch.finfo(query_XE.dtype).tiny
    size_X1 = _key_sizes(query_XE)
    y_XE, total_X1 = value_XE.clone(), torch.full_like(size_X1, SELF_MASK_VALUE)
    for chunks in rounds.pieces():
        query_WE = query_XE.index_select(0, chunks.key_W)
        key_WE = query_WE / size_X1.index_select(0, chunks.key_W)
        logits_NCK = rounds.chunks(query_WE[rounds.before :]) @ rounds.windows(key_WE)
        logits_NCK.masked_fill_(chunks.unseen_NCK, lowest)
        largest_NC1 = logits_NCK.detach().amax(-1, keepdim=True)
        # Unseen logits are 0 before exp(), which takes ten times as long where it underflows, and again after it.
        exp_NCK = logits_NCK.sub_(largest_NC1).masked_fill_(chunks.unseen_NCK, 0).exp_()
        exp_NCK = exp_NCK.masked_fill(chunks.unseen_NCK, 0)
        new_P1 = (exp_NCK.sum(-1, keepdim=True).clamp(min=tiny).log() + largest_NC1).flatten(0, 1)
        old_P1 = total_X1.index_select(0, chunks.query_P)
        both_P1 = torch.logaddexp(old_P1, new_P1)
        value_NEK = rounds.windows(value_XE.index_select(0, chunks.key_W))
        new_PE = (apply_dropout(exp_NCK, dropout) @ value_NEK.mT).flatten(0, 1) * (
            largest_NC1.flatten(0, 1) - both_P1
        ).exp()
        old_PE = y_XE.index_select(0, chunks.query_P) * (old_P1 - both_P1).exp()
        y_XE.index_copy_(0, chunks.query_P, old_PE + new_PE)
        total_X1.index_copy_(0, chunks.query_P, both_P1)
    return y_XE, total_X1


class _LshAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_XE: Tensor, value_XE: Tensor, rounds: HashRounds) -> Tensor:
        y_XE, total_X1 = _attention(query_XE, value_XE, rounds)
        ctx.save_for_backward(query_XE, value_XE, y_XE, total_X1)
        ctx.rounds = rounds
        return y_XE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XE: Tensor) -> tuple[Tensor, Tensor, None]:
        rounds: HashRounds = ctx.rounds
        query_XE, value_XE, y_XE, total_X1 = ctx.saved_tensors
        size_X1 = _key_sizes(query_XE)
        mean_X1 = torch.linalg.vecdot(grad_XE, y_XE)[:, None]
        query_grad, value_grad = torch.zeros_like(query_XE), grad_XE * (SELF_MASK_VALUE - total_X1).exp()
        for chunks in rounds.pieces():
            query_WE, value_WE = (x_XE.index_select(0, chunks.key_W) for x_XE in (query_XE, value_XE))
            grad_NCE, total_NC1, mean_NC1 = (
                rounds.chunks(x_X.index_select(0, chunks.query_P)) for x_X in (grad_XE, total_X1, mean_X1)
            )
            size_W1 = size_X1.index_select(0, chunks.key_W)
            key_WE = query_WE / size_W1
            query_PE = query_WE[rounds.before :]
            weight_NCK = rounds.chunks(query_PE) @ rounds.windows(key_WE)
            weight_NCK.sub_(total_NC1).exp_().masked_fill_(chunks.unseen_NCK, 0)
            value_grad.index_add_(0, chunks.key_W, rounds.by_key(weight_NCK, grad_NCE))
            logit_grad_NCK = (grad_NCE @ rounds.windows(value_WE)).sub_(mean_NC1).mul_(weight_NCK)
            key_grad_WE = rounds.by_key(logit_grad_NCK, rounds.chunks(query_PE))
            # A key has unit length, so its gradient has no component along the query.
            along_W1 = torch.linalg.vecdot(key_grad_WE, key_WE)[:, None] * query_XE.shape[1]
            grad_WE = key_grad_WE.addcmul_(key_WE, along_W1, value=-1).div_(size_W1)
            grad_WE[rounds.before :] += (logit_grad_NCK @ rounds.windows(key_WE).mT).flatten(0, 1)
            query_grad.index_add_(0, chunks.key_W, grad_WE)
        return query_grad, value_grad, None
