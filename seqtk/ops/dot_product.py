"""Dot-product attention by torch's kernel, and the masks that it is given.

B batch, T query length, S key length, H heads, K heads of keys and values, E width of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import State
from seqtk.ops import cache


def attend(
    query_BHTE: Tensor,
    key_BKSE: Tensor,
    value_BKSE: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(Q Kᵀ · scale + bias) V by torch's kernel; `bias` broadcasts to BHTS and is True (or finite) where seen.

    Keys and values may have fewer heads, K that divides H; query head h then takes those of head ⌊h K / H⌋.
    In float32 on a CPU even under autocast, where the backward of the bfloat16 kernel is ten times slower.
    """
    if query_BHTE.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(
                query_BHTE.float(), key_BKSE.float(), value_BKSE.float(),
                bias=bias, causal=causal, dropout=dropout, scale=scale,
            )  # fmt: skip
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(query_BHTE.dtype)
    heads, kv_heads = query_BHTE.shape[1], key_BKSE.shape[1]
    folded = kv_heads < heads and query_BHTE.shape[2] == 1
    if folded:  # the single queries of a group are the rows of one product, twice as fast as a group's heads apart
        query_BHTE = query_BHTE.reshape(len(query_BHTE), kv_heads, heads // kv_heads, query_BHTE.shape[3])
        if bias is not None and bias.shape[1] == heads:
            bias = bias.reshape(len(bias), kv_heads, heads // kv_heads, bias.shape[3])
    y = functional.scaled_dot_product_attention(
        query_BHTE, key_BKSE, value_BKSE, attn_mask=bias, is_causal=causal, dropout_p=dropout, scale=scale,
        enable_gqa=kv_heads < heads and not folded,
    )  # fmt: skip
    return y.flatten(1, 2)[:, :, None] if folded else y


def attend_last(query_BH1E: Tensor, state: State, *, bias: Tensor | None = None) -> Tensor:
    """As `attend`, of one query a row over the positions of `key` and `value` in a cache; `bias` is finite."""
    keys, values = cache.segments(state, "key"), cache.segments(state, "value")
    if len(keys) == 1:
        return attend(query_BH1E, keys[0], values[0], bias=bias)
    logits_BH1S = cache.compare(query_BH1E, state)
    return cache.average(logits_BH1S if bias is None else logits_BH1S + bias, state)


def padding_bias(pad_BS: Tensor | None, *, causal_length: int | None = None) -> Tensor | None:
    """The boolean mask, True where seen and of a shape that broadcasts to BHTS, of padding and the future."""
    if pad_BS is None:
        return None
    seen = ~pad_BS[:, None, None, :]
    return seen if causal_length is None else seen & causal_mask(causal_length, pad_BS.device)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """mask_TS: True where position t may see position s, s <= t."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
