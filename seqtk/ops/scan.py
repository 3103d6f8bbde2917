"""Causal sums: y_t = Σ_{s <= t} (q_t · k_s) v_s, in O(T) time and memory.

This is the core of causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, section 3.3).

Where it runs: in chunks on every device. Under torch.compile the autograd function is not used, and the compiler
derives the backward pass. Within a chunk it is a masked product, across chunks a running sum of k_s v_sᵀ. The gradients
are causal sums too, so the backward pass needs the N running sums of the forward pass and no T × T matrix. Chunks of C
positions take T C (R + E) time, and the running sums T R E / C memory.

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
"""The default number of positions in a chunk."""


def naive(query_BHTR: Tensor, key_BHTR: Tensor, value_BHTE: Tensor) -> Tensor:
    """Computes the sums as a masked product with T × T weights."""
    return (query_BHTR @ key_BHTR.mT).tril() @ value_BHTE


def causal_sums(query_BHTR: Tensor, key_BHTR: Tensor, value_BHTE: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Returns the sums y_BHTE in float32 or wider, even under autocast: low-precision running sums lose small terms."""
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
    """Returns (y_GNCE, weights_GNCC, past_GNRE).

    y are the sums, `weights` the masked products q · k within each chunk, and `past` the sum of k vᵀ over all earlier
    chunks.
    """
    weights_GNCC = (query_GNCR @ key_GNCR.mT).tril_()
    past_GNRE = _sums_before(key_GNCR.mT @ value_GNCE)
    return _products(weights_GNCC, value_GNCE, query_GNCR, past_GNRE), weights_GNCC, past_GNRE


class _CausalSums(torch.autograd.Function):
    """Computes `causal_sums` in chunks. The gradients are sums over the past (queries) or the future (keys, values)."""

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
    """Returns, for each chunk, the sum over all earlier chunks."""
    return functional.pad(x_GNRE[:, :-1].cumsum(1), (0, 0, 0, 0, 1, 0))


def _products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Returns a b + c d as batched matrix products. With one chunk, c d is 0 and skipped."""
    first = a @ b
    if a.shape[1] > 1:
        first.flatten(0, 1).baddbmm_(c.flatten(0, 1), d.flatten(0, 1))
    return first
