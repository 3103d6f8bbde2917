"""Sums over the past without a T × T matrix and without a loop over positions: what causal linear attention is made of.

B batch, T length, H heads, R width of the keys, E width of the values, G rows and heads, N chunks of C positions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seqtk.ops.blocks import in_blocks

CHUNK = 64
"""Positions that are compared with each other directly: T C (R + E) time within chunks, T R E / C memory between."""


def causal_sums(query_BHTR: Tensor, key_BHTR: Tensor, value_BHTE: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """y_BHTE: y_t = Σ_{s <= t} (q_t · k_s) v_s, in O(T) time and memory (Katharopoulos et al. 2020, section 3.3).

    Within a chunk by a masked product; across chunks by the running sum of k_s v_sᵀ. In float32 or wider, whatever
    autocast says, because a running sum loses what is small beside it.
    """
    dtype = torch.promote_types(torch.promote_types(query_BHTR.dtype, value_BHTE.dtype), torch.float32)
    batch, _, length, _ = query_BHTR.shape
    in_chunks = [in_blocks(x.to(dtype).flatten(0, 1), min(chunk, length)) for x in (query_BHTR, key_BHTR, value_BHTE)]
    with torch.autocast(query_BHTR.device.type, enabled=False):
        if torch.compiler.is_compiling():
            y_GNCE, _, _ = _sums(*in_chunks)
        else:
            y_GNCE = _CausalSums.apply(*in_chunks)  # type: ignore[no-untyped-call]
    y_GTE = y_GNCE.flatten(1, 2)[:, :length]
    return y_GTE.view(batch, -1, *y_GTE.shape[1:])


def _sums(query_GNCR: Tensor, key_GNCR: Tensor, value_GNCE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, y_GNCE; the weights within chunks, GNCC; and of each chunk the sum of k vᵀ before it, GNRE."""
    weights_GNCC = (query_GNCR @ key_GNCR.mT).tril_()
    past_GNRE = _sums_before(key_GNCR.mT @ value_GNCE)
    return _products(weights_GNCC, value_GNCE, query_GNCR, past_GNRE), weights_GNCC, past_GNRE


class _CausalSums(torch.autograd.Function):
    """The gradients are such sums, too: of the past for the queries, of the future for keys and values."""

    @staticmethod
    def forward(ctx: Any, query_GNCR: Tensor, key_GNCR: Tensor, value_GNCE: Tensor) -> Tensor:
        y_GNCE, weights_GNCC, past_GNRE = _sums(query_GNCR, key_GNCR, value_GNCE)
        ctx.save_for_backward(query_GNCR, key_GNCR, value_GNCE, weights_GNCC, past_GNRE)
        return y_GNCE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GNCE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_GNCR, key_GNCR, value_GNCE, weights_GNCC, past_GNRE = ctx.saved_tensors
        by_weight_GNCC = (grad_GNCE @ value_GNCE.mT).tril_()
        future_GNRE = _sums_before((query_GNCR.mT @ grad_GNCE).flip(1)).flip(1)
        return (
            _products(by_weight_GNCC, key_GNCR, grad_GNCE, past_GNRE.mT),
            _products(by_weight_GNCC.mT, query_GNCR, value_GNCE, future_GNRE.mT),
            _products(weights_GNCC.mT, grad_GNCE, key_GNCR, future_GNRE),
        )


def _sums_before(x_GNRE: Tensor) -> Tensor:
    """At each chunk the sum over all before it."""
    return functional.pad(x_GNRE[:, :-1].cumsum(1), (0, 0, 0, 0, 1, 0))


def _products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """a b + c d, of matrices in the last two of four dimensions; the second is 0 where there is but one chunk."""
    first = a @ b
    if a.shape[1] > 1:
        first.flatten(0, 1).baddbmm_(c.flatten(0, 1), d.flatten(0, 1))
    return first
