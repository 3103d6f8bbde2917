"""The keys and values of the positions so far, kept so that a step copies few of them.

Lengthening one tensor at every step copies it whole, which from a thousand positions on takes longer than attending to
it. So new positions lengthen a short tensor, which joins the long one when it is full. Nothing is changed in place: a
search may go on from any state.

B batch, T query length, S key length, H heads, K heads of keys and values, E width of a head.
"""

import math

import torch
from torch import Tensor

from seqtk.attention.base import State

RECENT = 256
"""Positions that the short tensor holds when it is full; shorter outputs never leave it."""


def empty() -> State:
    """The state before the first position."""
    return {"key": None, "value": None, "past_key": None, "past_value": None}


def append(cache_BHTE: Tensor | None, new_BHTE: Tensor) -> Tensor:
    """The cache with the new positions at its end."""
    return new_BHTE if cache_BHTE is None else torch.cat([cache_BHTE, new_BHTE], dim=2)


def length(state: State) -> int:
    """The number of positions in the cache."""
    return sum(state[name].shape[2] for name in ("past_key", "key") if state[name] is not None)


def remember(state: State, key_BK1E: Tensor, value_BK1E: Tensor) -> State:
    """The state with one more position."""
    key, value = append(state["key"], key_BK1E), append(state["value"], value_BK1E)
    if key.shape[2] < RECENT:
        return {**state, "key": key, "value": value}
    past_key, past_value = append(state["past_key"], key), append(state["past_value"], value)
    return {**state, "key": None, "value": None, "past_key": past_key, "past_value": past_value}


def segments(state: State) -> list[tuple[Tensor, Tensor]]:
    """The cached (key, value) tensors, oldest first."""
    names = (("past_key", "past_value"), ("key", "value"))
    return [(state[key], state[value]) for key, value in names if state[key] is not None]


def attend_apart(query_BH1E: Tensor, parts: list[tuple[Tensor, Tensor]], *, bias: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √E + bias) V of one query a row over keys and values that lie in several tensors.

    Nothing is copied but the logits; `bias` is finite and broadcasts to BH1S.
    """
    batch, heads, _, width = query_BH1E.shape
    kv_heads = parts[0][0].shape[1]
    query_BKGE = query_BH1E.reshape(batch, kv_heads, heads // kv_heads, width) / math.sqrt(width)
    logits_BHS = torch.cat([query_BKGE @ key.transpose(-1, -2) for key, _ in parts], -1).flatten(1, 2)
    if bias is not None:
        logits_BHS = logits_BHS + bias.squeeze(2)
    weights_BHS = logits_BHS.softmax(-1, dtype=torch.promote_types(logits_BHS.dtype, torch.float32))
    weights_BKGS = weights_BHS.to(parts[0][1].dtype).view(batch, kv_heads, heads // kv_heads, -1)
    pieces = torch.split(weights_BKGS, [key.shape[2] for key, _ in parts], -1)
    y_BKGE = torch.stack([piece @ value for piece, (_, value) in zip(pieces, parts, strict=True)]).sum(0)
    return y_BKGE.reshape(batch, heads, 1, width)
