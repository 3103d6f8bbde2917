"""Causal sums: y_t = Σ_{s <= t} (q_t · k_s) v_s, in O(T) time and memory.

The core of causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, section 3.3).

Where it runs: in chunks on every device; under torch.compile without the autograd function, whose backward the compiler
then derives. Within a chunk it is a masked product, across chunks a running sum of k_s v_sᵀ. The gradients are such
sums, too, so the backward keeps the N running sums of the forward and no T × T matrix. Chunks of C positions take
T C (R + E) time within and T R E / C memory between them.

B batch, T length, H heads, R width of the keys, E width of the values, G rows and heads, N chunks of C positions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.tensors import in_blocks, without_autocast

CHUNK = 64
"""Positions of a chunk, unless the caller says otherwise."""


def naive(query_BHTR: Tensor, key_BHTR: Tensor, value_BHTE: Tensor) -> Tensor:
    """The formula as a masked product: T × T weights."""
    return (query_BHTR @ key_BHTR.mT).tril() @ value_BHTE


def causal_sums(query_BHTR: Tensor, key_BHTR: Tensor, value_BHTE: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """y_BHTE, in float32 or wider, whatever autocast says: a running sum loses terms that are small beside it."""
    dtype = torch.promote_types(torch.promote_types(query_BHTR.dtype, value_BHTE.dtype), torch.float32)
    query_BHTR, key_BHTR, value_BHTE = (x.to(dtype) for x in (query_BHTR, key_BHTR, value_BHTE))
    with without_autocast(query_BHTR):
        if naive_mode():
            return naive(query_BHTR, key_BHTR, value_BHTE)
        return _in_chunks(query_BHTR, key_BHTR, value_BHTE, chunk)


def _in_chunks(query_BHTR: Tensor, key_BHTR: Tensor, value_BHTE: Tensor, chunk: int) -> Tensor:
    batch, _, length, _ = query_BHTR.shape
    in_chunks = [in_blocks(x.flatten(0, 1), min(chunk, length)) for x in (query_BHTR, key_BHTR, value_BHTE)]
    if torch.compiler.is_compiling():
        y_GNCE, _, _ = _sums(*in_chunks)
    else:
        y_GNCE = _CausalSums.apply(*in_chunks)  # type: ignore[no-untyped-call]
    y_GTE = y_GNCE.flatten(1, 2)[:, :length]
    return y_GTE.view(batch, -1, *y_GTE.shape[1:])


def _sums(query_GNCR: Tensor, key_GNCR: Tensor, value_GNCE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, y_GNCE; the weights within chunks, GNCC; and for each chunk the sum of k vᵀ before it, GNRE."""
    weights_GNCC = (query_GNCR @ key_GNCR.mT).tril_()
    past_GNRE = _sums_before(key_GNCR.mT @ value_GNCE)
    return _products(weights_GNCC, value_GNCE, query_GNCR, past_GNRE), weights_GNCC, past_GNRE


class _CausalSums(torch.autograd.Function):
    """The gradients: sums over the past for the queries, over the future for keys and values."""

    @staticmethod
    def forward(ctx: Any, query_GNCR: Tensor, key_GNCR: Tensor, value_GNCE: Tensor) -> Tensor:
        y_GNCE, weights_GNCC, past_GNRE = _sums(query_GNCR, key_GNCR, value_GNCE)
        ctx.save_for_backward(query_GNCR, key_GNCR, value_GNCE, weights_GNCC, past_GNRE)
        return y_GNCE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GNCE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_GNCR, key_GNCR, value_GNCE, weights_GNCC, past_GNRE = ctx.saved_tensors
        weights_grad_GNCC = (grad_GNCE @ value_GNCE.mT).tril_()
        future_GNRE = _sums_before((query_GNCR.mT @ grad_GNCE).flip(1)).flip(1)
        return (
            _products(weights_grad_GNCC, key_GNCR, grad_GNCE, past_GNRE.mT),
            _products(weights_grad_GNCC.mT, query_GNCR, value_GNCE, future_GNRE.mT),
            _products(weights_GNCC.mT, grad_GNCE, key_GNCR, future_GNRE),
        )


def _sums_before(x_GNRE: Tensor) -> Tensor:
    """For each chunk the sum over all chunks before it."""
    return functional.pad(x_GNRE[:, :-1].cumsum(1), (0, 0, 0, 0, 1, 0))


def _products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """a b + c d, of matrices in the last two of four dimensions; the second is 0 if there is only one chunk."""
    first = a @ b
    if a.shape[1] > 1:
        first.flatten(0, 1).baddbmm_(c.flatten(0, 1), d.flatten(0, 1))
    return first
