"""Attention to near positions: blocks, a sliding window, and a window with a few global positions.

    y_t = softmax(q_t · k_s / √E) v_s        over s near t

Computed in blocks on the fused kernel (`seqtk/ops/block_pattern.py`): O(T W) time and memory for W visible positions,
never T × T.

B batch, T length, S key length, D width of the layer, H heads, E width of a head, G global positions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.headwise import HeadwiseAttention
from seqtk.attention.qkv import QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.block_pattern import WindowMask, WindowSpec, window_attention
from seqtk.ops.cache import append, keep_last
from seqtk.ops.dot_product import attend, causal_mask
from seqtk.ops.tensors import to_fp32, without_autocast, zero_padding


class WindowAttention(HeadwiseAttention):
    """Base class of attention to a window of keys: softmax(Q Kᵀ / √E) V per head. Parameters: 4 D² (+ 4 D bias)."""

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True
    window: WindowSpec
    global_tokens: int = 0
    """The number of global positions: the first positions, which every position also sees."""

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        query_BTD, key_BTD, value_BTD = map(self.join, (query_BHTE, key_BHSE, value_BHSE))
        seen_pad_BS = None if self.role is Role.CAUSAL else pad_BS  # padding comes after every token
        mask = WindowMask(self.window, query_BTD, seen_pad_BS, first=min(self.global_tokens, query_BTD.shape[1]))
        y_BTD = window_attention(
            query_BTD, key_BTD, value_BTD, mask, head_dim=self.head_dim, dropout=self.active_dropout
        )
        return zero_padding(self.split(y_BTD), pad_BS)


@dataclass(frozen=True)
class LocalBlockConfig(QKVConfig):
    """Dot-product attention within blocks: 4 D² weights, O(T block D) time and memory."""

    block: int = setting(64, at_least=1, help="Positions in a block.")
    back: bool = setting(False, help="Each block also sees the block before it.")


@attentions.register("local_block", LocalBlockConfig)
class LocalBlockAttention(WindowAttention):
    """Attention to the keys of the query's block and, with `back`, of the block before it.

    The local attention of Parmar et al. 2018, arXiv 1802.05751, section 3.3, in one dimension: each block of queries
    has a block of keys that contains it. CAUSAL: position t sees the keys s <= t of these blocks. Parameters: 4 D² (+ 4
    D bias). A step costs O(block): the state holds the keys and values of one block, or of two with `back`.
    """

    def __init__(self, config: LocalBlockConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.window = WindowSpec(config.block, int(config.back), 0, farthest_ahead=0 if role is Role.CAUSAL else None)

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        block, blocks = self.config.block, 1 + int(self.config.back)
        if state["key"] is not None and state["key"].shape[2] == blocks * block:  # the next block begins
            state = {name: state[name][:, :, block:] for name in ("key", "value")}
        state = {"key": append(state["key"], key_BH1E), "value": append(state["value"], value_BH1E)}
        return attend(query_BH1E, state["key"], state["value"]), state


@dataclass(frozen=True)
class SlidingWindowConfig(QKVConfig):
    """Dot-product attention to the nearest positions: 4 D² weights, O(T window D) time and memory."""

    window: int = setting(
        128, at_least=1, help="Visible positions: window / 2 on each side (encoder), or the last `window` (decoder)."
    )


@attentions.register("sliding_window", SlidingWindowConfig)
class SlidingWindowAttention(WindowAttention):
    """Attention to the keys s near a query t: softmax(Q Kᵀ / √E) V over a window.

    ENCODER: |t - s| <= ⌊window / 2⌋. CAUSAL: 0 <= t - s < window. Beltagy et al. 2020, arXiv 2004.05150, section 3.1,
    without dilation. Parameters: 4 D² (+ 4 D bias). A step costs O(window): the state holds that many keys and values.
    """

    def __init__(self, config: SlidingWindowConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.window = sliding_window(config.window, causal=role is Role.CAUSAL)

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        state = keep_last(state, self.config.window, key=key_BH1E, value=value_BH1E)
        return attend(query_BH1E, state["key"], state["value"]), state


@dataclass(frozen=True)
class LongformerConfig(SlidingWindowConfig):
    """Attention to near and global positions: 7 D² weights, O(T (window + heads global_tokens) D) time."""

    window: int = setting(
        512, at_least=1, help="Visible positions: window / 2 on each side (encoder), or the last `window` (decoder)."
    )
    global_tokens: int = setting(
        1, at_least=1, help="Number of global positions: the first ones, which see all positions and are seen by all."
    )


@attentions.register("longformer", LongformerConfig)
class LongformerAttention(WindowAttention):
    """Sliding-window attention whose first G = `global_tokens` positions see all positions and are seen by all.

    Position t >= G: softmax(q_t · k_s / √E) v_s over s in its window or s < G. Position t < G: the same formula over
    all s, with separate projections (`global_query`, `global_key`, `global_value`). Beltagy et al. 2020, arXiv
    2004.05150, section 3.1. The paper has no causal form. In seqtk's causal form, position t sees s <= t only, so a
    global position sees only the global positions up to itself. Parameters: 7 D² (+ 7 D bias). A step costs O(window +
    G): the state holds the keys and values of the window and of the global positions.
    """

    def __init__(self, config: LongformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.window = sliding_window(config.window, causal=role is Role.CAUSAL)
        self.global_tokens = config.global_tokens
        self.global_query = self.projection(dim, gain=1 / math.sqrt(2))
        self.global_key = self.projection(dim, gain=1 / math.sqrt(2))
        self.global_value = self.projection(dim, gain=1 / math.sqrt(2))

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        y_BTD, _ = super().forward(x_BTD, pad_BS=pad_BS)
        y_BGD = self.out(self._attend_from_global(x_BTD, pad_BS))
        return torch.cat([y_BGD, y_BTD[:, y_BGD.shape[1] :]], dim=1), None

    def _attend_from_global(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        """Returns the outputs of the global positions, y_BGD.

        There are few global positions, so keys and values need not be computed for all positions: q · (A x + a) = (Aᵀ
        q) · x + q · a, and Σ w (B x + b) = B (Σ w x) + b Σ w. Computed in float32 or wider even under autocast, like
        `attend`.
        """
        x_BGD = x_BTD[:, : self.global_tokens]
        x_BSD = x_BTD
        seen = None if pad_BT is None else ~pad_BT[:, None, None]
        if self.role is Role.CAUSAL:
            x_BSD, seen = x_BGD, causal_mask(x_BGD.shape[1], x_BTD.device)
        query_BHGE = self.split(self.global_query(x_BGD))
        dtype, heads = query_BHGE.dtype, (self.heads, self.head_dim, -1)
        with without_autocast(x_BTD):
            x_BSD, query_BHGE = to_fp32(x_BSD), to_fp32(query_BHGE) / math.sqrt(self.head_dim)
            key_HED, value_HED = (to_fp32(linear.weight).view(heads) for linear in (self.global_key, self.global_value))
            logits_BHGS = _product(query_BHGE @ key_HED, x_BSD.transpose(1, 2))
            # The bias of keys has no effect on the output; adding it makes its gradient 0 instead of None.
            if self.global_key.bias is not None:
                logits_BHGS = logits_BHGS + query_BHGE @ to_fp32(self.global_key.bias).view(heads)
            if seen is not None:
                logits_BHGS = logits_BHGS.masked_fill(~seen, torch.finfo(logits_BHGS.dtype).min)
            weight_BHGS = functional.dropout(logits_BHGS.softmax(-1), self.active_dropout)
            y_BHGE = _product(weight_BHGS, x_BSD) @ value_HED.transpose(1, 2)
            if self.global_value.bias is not None:
                bias_H1E = to_fp32(self.global_value.bias).view(self.heads, 1, -1)
                y_BHGE = y_BHGE + weight_BHGS.sum(-1, keepdim=True) * bias_H1E
        pad_BG = None if pad_BT is None else pad_BT[:, : self.global_tokens]
        return self.join(zero_padding(y_BHGE.to(dtype), pad_BG))

    def start_mix(self, batch: int) -> State:
        return dict.fromkeys(("key", "value", "first_key", "first_value", "global_key", "global_value"))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        kept, key_BH1E, value_BH1E = state.dynamic, self.keys(x_B1D), self.values(x_B1D)
        is_global = kept["first_key"] is None or kept["first_key"].shape[2] < self.global_tokens
        if is_global:
            new = {"first_key": key_BH1E, "first_value": value_BH1E}
            new |= {name: self.split(getattr(self, name)(x_B1D)) for name in ("global_key", "global_value")}
            kept = {**kept, **{name: append(kept[name], new_BH1E) for name, new_BH1E in new.items()}}
            y_BH1E = attend(self.split(self.global_query(x_B1D)), kept["global_key"], kept["global_value"])
        else:
            kept = keep_last(kept, self.config.window, key=key_BH1E, value=value_BH1E)
            key_BHSE, value_BHSE = (torch.cat([kept[f"first_{name}"], kept[name]], 2) for name in ("key", "value"))
            y_BH1E = attend(self.queries(x_B1D), key_BHSE, value_BHSE)
        return self.out(self.join(y_BH1E)), state.advance(kept)


def sliding_window(window: int, *, causal: bool) -> WindowSpec:
    """Returns the window |t - s| <= window / 2, or 0 <= t - s < window if `causal`, in blocks of half a window.

    Larger blocks compute more positions outside the window, and smaller blocks make the kernel slower. Of the powers of
    two, blocks of 256 are fastest for a window of 512, and blocks of 64 for a window of 128 (forward and backward, on a
    CPU).
    """
    half = window // 2
    block = max(half, 1)
    if causal:
        return WindowSpec(block, -(-(window - 1) // block), 0, farthest_back=window - 1, farthest_ahead=0)
    return WindowSpec(block, 1, 1, farthest_back=half, farthest_ahead=half)


def _product(left_BHGI: Tensor, right_BIO: Tensor) -> Tensor:
    """Multiplies all heads of each row of the batch by the row's matrix, in one product per row."""
    return (left_BHGI.flatten(1, 2) @ right_BIO).unflatten(1, left_BHGI.shape[1:3])  # type: ignore[no-any-return, no-untyped-call]
