"""Torch's FlexAttention: masks and biases are functions of (batch, head, query, key), never T × S tensors.

Compiled for CUDA, where blocks that no query sees are skipped. On a CPU torch has no backward for it (2.13), so there
it serves to compare with.

B batch, T query length, S key length, H heads, K heads of keys and values, E width of a head.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) → True where seen."""
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(logit, batch, head, query, key) → the logit with its bias."""

LEAST_HEAD_DIM = 16
"""The narrowest head that torch's CUDA kernel takes."""


def flex_attend(
    query_BHTE: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, *, seen: Mask | None = None, score: Score | None = None
) -> Tensor:
    """softmax(score(Q Kᵀ / √E)) V over what is `seen`, 0 where nothing is; K divides H.

    What `score` captures must be tensors that need no gradient: that of a captured bias has open bugs in torch (its
    issues 145208 and 157677), and a captured int becomes a dynamic one, which some kernels refuse.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # seconds, which few need

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


def seen_by(pad_BS: Tensor | None, *, causal: bool) -> Mask | None:
    """What padding and the future leave to see; None is everything."""
    if pad_BS is None:
        return (lambda b, h, t, s: t >= s) if causal else None
    if causal:
        return lambda b, h, t, s: ~pad_BS[b, s] & (t >= s)
    return lambda b, h, t, s: ~pad_BS[b, s]


def alibi_score(slope_H: Tensor, positions_BT: Tensor | None) -> Score:
    """The logit less slope · |distance|; `positions_BT` None is 0, 1, 2, …"""
    if positions_BT is None:
        return lambda logit, b, h, t, s: logit - slope_H[h] * (s - t).abs()
    return lambda logit, b, h, t, s: logit - slope_H[h] * (positions_BT[b, s] - positions_BT[b, t]).abs()


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)
