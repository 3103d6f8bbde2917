"""A cache of keys and values, or other tensors. Each decoding step appends one position.

Where it runs: on every device. Each name has a long and a short tensor. Appending to one tensor copies all of it at
every step, which takes longer than attention from some hundred positions on. So new positions are appended to the short
tensor, and a full short tensor is appended to the long one. The naive form concatenates.

No tensor is changed in place, so a search can continue from any earlier cache.

B batch, S key length, H heads, K heads of keys and values, E width of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.tensors import to_fp32, without_autocast

Cache = dict[str, Any]
"""Name → tensor whose second last dimension is positions, or None before the first position."""

RECENT = 256
"""The capacity of the short tensor. Shorter outputs use only the short tensor."""


def naive(cache: Cache, **new_1E: Tensor) -> Cache:
    """Appends one position to each of the named tensors by concatenation, and returns the cache."""
    return {**cache, **{name: append(cache[name], tensor) for name, tensor in new_1E.items()}}


def empty(*names: str) -> Cache:
    """Returns an empty cache for tensors with the given names."""
    return dict.fromkeys([*names, *map(_past, names)])


def append(kept_SE: Tensor | None, new_SE: Tensor) -> Tensor:
    """Appends new positions to the tensor `kept_SE`, or returns only the new positions if it is None."""
    return new_SE if kept_SE is None else torch.cat([kept_SE, new_SE], dim=-2)


def remember(cache: Cache, **new_1E: Tensor) -> Cache:
    """Appends one position to each of the named tensors, and returns the cache."""
    recent = naive(cache, **new_1E)
    if naive_mode() or min(recent[name].shape[-2] for name in new_1E) < RECENT:
        return recent
    past = {_past(name): append(cache[_past(name)], recent[name]) for name in new_1E}
    return {**recent, **dict.fromkeys(new_1E), **past}


def keep_last(cache: Cache, length: int, **new_1E: Tensor) -> Cache:
    """Appends one position to each of the named tensors, and returns the cache of the last `length` positions."""
    recent = naive(cache, **new_1E)
    return {**recent, **{name: recent[name][..., -length:, :] for name in new_1E}}


def segments(cache: Cache, name: str) -> list[Tensor]:
    """Returns the tensors that contain all positions so far, oldest first."""
    return [cache[key] for key in (_past(name), name) if cache[key] is not None]


def length(cache: Cache, name: str) -> int:
    """Returns the number of cached positions."""
    return sum(segment.shape[-2] for segment in segments(cache, name))


def picked(cache: Cache, name: str, *, first: int, stride: int = 1) -> Tensor:
    """Returns every `stride`-th cached position from position `first` on, as one tensor."""
    pieces, start = [], 0
    for segment in segments(cache, name):
        offset = first - start if first > start else (first - start) % stride
        pieces.append(segment[..., offset::stride, :])
        start += segment.shape[-2]
    return torch.cat(pieces, dim=-2)


def compare(query_BH1E: Tensor, cache: Cache, *, scale: float | None = None) -> Tensor:
    """Computes the logits Q Kᵀ · scale, BH1S, of one query per row for the cached keys. Keys may have fewer heads.

    `scale` defaults to 1 / √E. Computed in float32 or wider even under autocast, as in `dot_product.attend`.
    """
    batch, heads, _, width = query_BH1E.shape
    keys = segments(cache, "key")
    kv_heads = keys[0].shape[1]
    with without_autocast(query_BH1E):
        query_BH1E = to_fp32(query_BH1E) * (scale or 1 / math.sqrt(width))
        query_BKGE = query_BH1E.reshape(batch, kv_heads, heads // kv_heads, width)
        return torch.cat([query_BKGE @ to_fp32(key).mT for key in keys], -1).view(batch, heads, 1, -1)


def average(logits_BH1S: Tensor, cache: Cache, *, name: str = "value") -> Tensor:
    """Returns the means of the cached values, weighted by softmax(logits), as a tensor of shape BH1E.

    `name` is the name of the values in the cache. They may have fewer heads than the logits. Logits of shape 1H1S apply
    to all rows. The sum is computed in float32 or wider even under autocast. The result has the dtype of the values.
    """
    values = segments(cache, name)
    heads, kv_heads = logits_BH1S.shape[1], values[0].shape[1]
    with without_autocast(logits_BH1S):
        weights_BH1S = to_fp32(logits_BH1S).softmax(-1)
        weights_BKGS = weights_BH1S.view(len(logits_BH1S), kv_heads, heads // kv_heads, -1)
        y_BKGE = sum_over(weights_BKGS, [value.to(weights_BKGS.dtype) for value in values])
    return y_BKGE.reshape(len(y_BKGE), heads, 1, -1).to(values[0].dtype)


def sum_over(weights_TS: Tensor, values: list[Tensor]) -> Tensor:
    """Returns the weighted sum of the values over all positions. `values` are one or two consecutive tensors."""
    pieces = torch.split(weights_TS, [value.shape[-2] for value in values], -1)
    products = [  # expand the weights; otherwise torch copies the values to form one product of all rows
        piece.expand(*value.shape[:-2], -1, -1) @ value for piece, value in zip(pieces, values, strict=True)
    ]
    return products[0] if len(products) == 1 else torch.add(*products)


def _past(name: str) -> str:
    return f"past_{name}"
