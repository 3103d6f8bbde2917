"""Dot-product attention, softmax(Q Kᵀ / √E + bias) V (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1), and masks.

Where it runs: `attend` calls torch's scaled_dot_product_attention, which selects a fused kernel on every device. On a
CPU, torch has no fused kernel with dropout, so long inputs use `seqtk.ops.dropout_attention`. `seqtk.ops.flex` computes
the same attention with FlexAttention.

Keys and values may have fewer heads: K divides H, and query head h reads their head ⌊h K / H⌋.

B batch, T query length, S key length, H heads, K heads of keys and values, E width of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.ops import cache, dropout_attention
from seqtk.ops import dropout as dropout_op
from seqtk.ops.dispatch import naive_mode
from seqtk.ops.tensors import once_for, to_fp32, without_autocast


def naive(
    query_BHTE: Tensor,
    key_BKSE: Tensor,
    value_BKSE: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Computes the attention from all T × S weights at once. The output is 0 for a query that sees no key."""
    group = query_BHTE.shape[1] // key_BKSE.shape[1]
    key_BHSE, value_BHSE = (to_fp32(x).repeat_interleave(group, 1) for x in (key_BKSE, value_BKSE))
    scale = query_BHTE.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(query_BHTE):
        logits_BHTS = to_fp32(query_BHTE) @ key_BHSE.mT * scale
        seen = torch.ones_like(logits_BHTS, dtype=torch.bool)
        if causal:
            seen = seen.tril()
        if bias is not None:
            seen = seen & (bias if bias.dtype == torch.bool else bias > -torch.inf)
            logits_BHTS = logits_BHTS if bias.dtype == torch.bool else logits_BHTS + bias
        logits_BHTS = logits_BHTS.masked_fill(~seen, torch.finfo(logits_BHTS.dtype).min)
        weights_BHTS = logits_BHTS.softmax(-1).masked_fill(~seen, 0)
        if dropout:
            weights_BHTS = dropout_op.naive(weights_BHTS, dropout)
        return (weights_BHTS @ value_BHSE).to(value_BKSE.dtype)


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
    """Computes softmax(Q Kᵀ · scale + bias) V, BHTE.

    `bias` broadcasts to BHTS. It is either a boolean mask, True where a query sees a key, or a number that is added to
    the logit, -inf where a query does not see a key.

    On a CPU it computes in float32 even under autocast: the backward pass of the bfloat16 kernel is ten times slower.
    """
    if query_BHTE.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(
                query_BHTE.float(), key_BKSE.float(), value_BKSE.float(),
                bias=bias, causal=causal, dropout=dropout, scale=scale,
            )  # fmt: skip
    if naive_mode():
        return naive(query_BHTE, key_BKSE, value_BKSE, bias=bias, causal=causal, dropout=dropout, scale=scale)
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(query_BHTE.dtype)
    heads, kv_heads = query_BHTE.shape[1], key_BKSE.shape[1]
    folded = kv_heads < heads and query_BHTE.shape[2] == 1
    if folded:  # one product per group, with its single queries as rows, is twice as fast as one per head
        query_BHTE = query_BHTE.reshape(len(query_BHTE), kv_heads, heads // kv_heads, query_BHTE.shape[3])
        if bias is not None and bias.shape[1] == heads:
            bias = bias.reshape(len(bias), kv_heads, heads // kv_heads, bias.shape[3])
    if dropout and dropout_attention.is_faster(query_BHTE, key_BKSE):
        return dropout_attention.attend(
            query_BHTE, key_BKSE, value_BKSE, rate=dropout, bias=bias, causal=causal, scale=scale
        )
    y = functional.scaled_dot_product_attention(
        query_BHTE, key_BKSE, value_BKSE, attn_mask=bias, is_causal=causal, dropout_p=dropout, scale=scale,
        enable_gqa=kv_heads < heads and not folded,
    )  # fmt: skip
    return y.flatten(1, 2)[:, :, None] if folded else y


def attend_last(query_BH1E: Tensor, state: cache.Cache, *, bias: Tensor | None = None) -> Tensor:
    """Computes `attend` for one query per row over the `key` and `value` of a cache; `bias` must be finite."""
    keys, values = cache.segments(state, "key"), cache.segments(state, "value")
    if len(keys) == 1:
        return attend(query_BH1E, keys[0], values[0], bias=bias)
    logits_BH1S = cache.compare(query_BH1E, state)
    return cache.average(logits_BH1S if bias is None else logits_BH1S + bias, state)


def padding_bias(pad_BS: Tensor | None, *, causal_length: int | None = None) -> Tensor | None:
    """Returns the mask of padding and the future, broadcastable to BHTS, True where seen, or None without padding."""
    if pad_BS is None:
        return None
    seen = ~pad_BS[:, None, None, :]
    return seen if causal_length is None else seen & causal_mask(causal_length, pad_BS.device)


def additive_padding(pad_BS: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns the mask of padding to add to logits, B11S: -inf at padding, else 0. Returns None without padding.

    With a boolean mask, `attend` would compute this tensor again in each layer. All layers of a model share this one.
    """
    if pad_BS is None:
        return None

    def compute() -> Tensor:
        return torch.zeros_like(pad_BS, dtype=dtype).masked_fill_(pad_BS, -torch.inf)[:, None, None]

    return once_for(f"additive {dtype}", pad_BS, compute)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Returns mask_TS, True where position t may see position s: s <= t."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
