"""Dot-product attention with dropout of the attention weights, on a CPU, one block of weights at a time.

torch has no fused CPU kernel with dropout. Its `scaled_dot_product_attention` computes all B × H × T × S weights and
draws one Bernoulli number for each. Here a block of weights stays in the CPU's cache, and the backward pass computes it
again, so that no T × S tensor is kept (as in FlashAttention, Dao et al. 2022, arXiv 2205.14135, section 3.1).
`seqtk.ops.dropout` draws the random bits.

B batch, T query length, S key length, H heads, E width of a head; a block has N pairs of a row and a head, and C
queries.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqtk.ops import dropout

BLOCK = 2**20
"""The approximate number of weights in a block."""

MIN_QUERIES = 64
"""The smallest number of queries in a block. Matrix products with fewer rows are slow."""

SHORT = 256
"""If T × S is smaller than the square of this length, torch's function is about as fast."""


def is_faster(query_BHTE: Tensor, key_BKSE: Tensor) -> bool:
    """Returns True if `attend` supports these inputs and is faster than torch's function."""
    if query_BHTE.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return query_BHTE.shape[1] == key_BKSE.shape[1] and query_BHTE.shape[2] * key_BKSE.shape[2] >= SHORT**2


def attend(
    query_BHTE: Tensor,
    key_BHSE: Tensor,
    value_BHSE: Tensor,
    *,
    rate: float,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Computes dropout(softmax(Q Kᵀ · scale + bias)) V, BHTE, with dropout of probability `rate`.

    `bias` broadcasts to BHTS. It is either a boolean mask, True where a query sees a key, or a number that is added to
    the logit, -inf where a query does not see a key. The output is 0 for a query that sees no key. `block` is the
    approximate number of weights that are computed together.
    """
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query_BHTE.dtype).masked_fill_(~bias, -torch.inf)
        bias = bias.clamp_min(_lowest(query_BHTE))
    scale = query_BHTE.shape[-1] ** -0.5 if scale is None else scale
    factor = dropout.keep_scale(rate, query_BHTE.device)
    plan = _Plan(causal, rate, seed=int(torch.randint(2**62, ())), block=block)
    y_BHTE: Tensor = _InBlocks.apply(  # type: ignore[no-untyped-call]
        plan, (query_BHTE * scale).contiguous(), key_BHSE.contiguous(), (value_BHSE * factor).contiguous(), bias
    )
    return y_BHTE


class _Block(NamedTuple):
    """A block of attention weights. The next block overwrites its tensors."""

    queries: tuple[slice, ...]
    """The index of the block's queries in a tensor BHTE."""
    keys: tuple[slice, ...]
    """The index of the block's keys in a tensor BHSE."""
    bias: tuple[slice, ...]
    """The index of the block in the bias."""
    logits_NCS: Tensor
    weights_NCS: Tensor
    bits_NCS: Tensor
    """The random bits that determine which weights are dropped."""


@dataclass(frozen=True)
class _Plan:
    """The arguments of `_InBlocks` that have no gradient."""

    causal: bool
    rate: float
    seed: int
    block: int

    def blocks(self, query_BHTE: Tensor, key_BHSE: Tensor, bias: Tensor | None) -> Iterator[_Block]:
        """Yields all blocks. Each call computes the same blocks, with the same random bits."""
        batch, heads, length = query_BHTE.shape[:3]
        key_length = key_BHSE.shape[2]
        most = max(self.block // key_length, MIN_QUERIES)
        if self.causal:  # a block with few queries has few weights of future keys, which are computed but not needed
            most = min(most, max(length // 8, MIN_QUERIES))
        most = min(most, length)
        at_once = max(self.block // (most * key_length), 1)
        some_heads = min(at_once, heads)
        some_rows = max(at_once // heads, 1)  # more than one only with all heads, so that N is one dimension in memory
        logits, weights = (query_BHTE.new_empty(some_rows * some_heads * most * key_length) for _ in range(2))
        bits = dropout.BitStream(self.seed, size=len(weights), dtype=weights.dtype)
        for rows, of_heads, queries in itertools.product(
            _slices(batch, some_rows), _slices(heads, some_heads), _slices(length, most)
        ):
            keys = slice(0, min(queries.stop, key_length) if self.causal else key_length)
            query_NCE, key_NSE = _flat(query_BHTE[rows, of_heads, queries]), _flat(key_BHSE[rows, of_heads, keys])
            shape = (*query_NCE.shape[:2], key_NSE.shape[1])
            size = math.prod(shape)
            logits_NCS, weights_NCS = logits[:size].view(shape), weights[:size].view(shape)
            torch.bmm(query_NCE, key_NSE.mT, out=logits_NCS)
            place: tuple[slice, ...] = ()
            if bias is not None:
                whole = (rows, of_heads, queries, keys)
                place = tuple(slice(None) if n == 1 else part for n, part in zip(bias.shape, whole, strict=True))
                logits_NCS.view(-1, of_heads.stop - of_heads.start, *shape[1:]).add_(bias[place])
            if self.causal:
                logits_NCS.masked_fill_(_future(queries, keys), _lowest(logits))
            torch.softmax(logits_NCS, -1, out=weights_NCS)
            at = (rows, of_heads)
            yield _Block((*at, queries), (*at, keys), place, logits_NCS, weights_NCS, bits.draw(shape))


class _InBlocks(torch.autograd.Function):
    """Computes `attend` block by block. Queries and values must be scaled, and the bias must be finite."""

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, bias: Tensor | None
    ) -> Tensor:
        y_BHTE = query_BHTE.new_empty(*query_BHTE.shape[:3], value_BHSE.shape[3])
        sees_nothing_BHT1 = None if bias is None else torch.empty_like(query_BHTE[..., :1], dtype=torch.bool)
        for block in plan.blocks(query_BHTE, key_BHSE, bias):
            if sees_nothing_BHT1 is not None:
                most_NC1 = block.logits_NCS.amax(-1, keepdim=True)
                torch.lt(most_NC1, _lowest(most_NC1) / 2, out=_flat(sees_nothing_BHT1[block.queries]))
            kept_NCS = dropout.drop_again(block.weights_NCS, block.bits_NCS, plan.rate, out=block.logits_NCS)
            torch.bmm(kept_NCS, _flat(value_BHSE[block.keys]), out=_flat(y_BHTE[block.queries]))
        ctx.plan = plan
        ctx.save_for_backward(query_BHTE, key_BHSE, value_BHSE, bias, sees_nothing_BHT1)
        return y_BHTE if sees_nothing_BHT1 is None else y_BHTE.masked_fill_(sees_nothing_BHT1, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        query_BHTE, key_BHSE, value_BHSE, bias, sees_nothing_BHT1 = ctx.saved_tensors
        grad_BHTE = grad_BHTE.contiguous()
        if sees_nothing_BHT1 is not None:
            grad_BHTE = grad_BHTE.masked_fill(sees_nothing_BHT1, 0)
        query_grad, key_grad, value_grad = map(torch.zeros_like, (query_BHTE, key_BHSE, value_BHSE))
        bias_grad = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        for block in plan.blocks(query_BHTE, key_BHSE, bias):
            y_grad_NCE = _flat(grad_BHTE[block.queries])
            kept_NCS = dropout.drop_again(block.weights_NCS, block.bits_NCS, plan.rate, out=block.logits_NCS)
            _flat(value_grad[block.keys]).baddbmm_(kept_NCS.mT, y_grad_NCE)
            weights_grad_NCS = torch.bmm(y_grad_NCE, _flat(value_BHSE[block.keys]).mT, out=block.logits_NCS)
            dropout.drop_again(weights_grad_NCS, block.bits_NCS, plan.rate, out=weights_grad_NCS)
            logits_grad_NCS = torch._softmax_backward_data(
                weights_grad_NCS, block.weights_NCS, -1, weights_grad_NCS.dtype, grad_input=weights_grad_NCS
            )
            torch.bmm(logits_grad_NCS, _flat(key_BHSE[block.keys]), out=_flat(query_grad[block.queries]))
            _flat(key_grad[block.keys]).baddbmm_(logits_grad_NCS.mT, _flat(query_BHTE[block.queries]))
            if bias_grad is not None:
                part = bias_grad[block.bias]
                part += logits_grad_NCS.view(*grad_BHTE[block.queries].shape[:3], -1).sum_to_size(part.shape)
        return None, query_grad, key_grad, value_grad, bias_grad


def _slices(length: int, size: int) -> list[slice]:
    """Returns slices of at most `size` positions that cover 0 … `length` - 1."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _flat(x_BHTE: Tensor) -> Tensor:
    """Returns a view x_NTE, in which rows and heads are one dimension."""
    return x_BHTE.view(-1, *x_BHTE.shape[2:])


def _lowest(x: Tensor) -> float:
    """Returns the logit of an unseen key: finite, so that the softmax of a row is never NaN."""
    return torch.finfo(x.dtype).min / 2


def _future(queries: slice, keys: slice) -> Tensor:
    """Returns a mask, CS, True where the position of a key is later than the position of the query."""
    return torch.arange(keys.stop) > torch.arange(queries.start, queries.stop)[:, None]
