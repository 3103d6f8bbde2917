"""Dot-product attention on torch's FlexAttention; `seqtk.ops.dot_product.naive` is its naive form.

Where it runs: on CUDA only. Masks and biases are functions of (batch, head, query, key), never T × S tensors, and
blocks that no query sees are skipped. FlexAttention has no backward pass on a CPU (torch 2.13).

B batch, T query length, S key length, H heads, K heads of keys and values, E width of a head.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function of (batch, head, query, key): True where the query sees the key."""
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function of (logit, batch, head, query, key): the logit plus its bias."""

MIN_FLEX_WIDTH = 16
"""The smallest head width that FlexAttention's CUDA kernel supports."""


def attend_flex(
    query_BHTE: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, *, seen: Mask | None = None, score: Score | None = None
) -> Tensor:
    """Computes softmax(score(Q Kᵀ / √E)) V over the keys that are `seen`, or 0 if a query sees no key.

    Tensors that `score` captures must not require a gradient: torch has open bugs in the gradient of a captured bias
    (issues 145208 and 157677). A captured int becomes a symbolic int, which some kernels reject.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # slow to import

    compiled = query_BHTE.is_cuda and not torch.compiler.is_compiling()
    block_mask = None
    if seen is not None:
        batch, _, queries, _ = query_BHTE.shape
        make = _compiled(create_block_mask) if compiled else create_block_mask
        block_mask = make(seen, batch, None, queries, key_BKSE.shape[2], device=query_BHTE.device.type)
    attend = _compiled(flex_attention) if compiled else flex_attention
    y_BHTE: Tensor = attend(
        query_BHTE,
        key_BKSE,
        value_BKSE,
        score_mod=score,
        block_mask=block_mask,
        enable_gqa=query_BHTE.shape[1] != key_BKSE.shape[1],
    )
    return y_BHTE


def flex_mask(pad_BS: Tensor | None, *, causal: bool) -> Mask | None:
    """Returns the mask of padding and the future for `attend_flex`, or None if every query sees every key."""
    if pad_BS is None:
        return (lambda b, h, t, s: t >= s) if causal else None
    if causal:
        return lambda b, h, t, s: ~pad_BS[b, s] & (t >= s)
    return lambda b, h, t, s: ~pad_BS[b, s]


def alibi_score(slope_H: Tensor) -> Score:
    """Returns a score function that subtracts slope · |distance| from the logit."""
    return lambda logit, b, h, t, s: logit - slope_H[h] * (s - t).abs()


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)
