"""Attention to what is near: blocks, a sliding window, and a window beside a few global positions.

All are computed in blocks, on the fused kernel: O(T W) time and memory for W positions seen, never T × T. Positions and
blocks are counted from each row's first real position.

B batch, T length, D width of the layer, H heads, E width of a head, N blocks of C positions, K keys that a block sees,
W positions in a window, F first positions that all see, G global positions, S positions that these see.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, StepState, attentions
from seqtk.attention.qkv import QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.block_pattern import PatternAttention, Span, WindowMask, window_attention
from seqtk.ops.cache import append
from seqtk.ops.dot_product import attend, causal_mask
from seqtk.ops.head_checkpoint import Projected


class NearAttention(PatternAttention):
    """softmax(Q Kᵀ / √E) V over the keys near a query. Parameters: 4 D² (+ 4 D bias)."""

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True
    span: Span

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.query = self.projection(dim, gain=1 / math.sqrt(2))
        self.key = self.projection(dim, gain=1 / math.sqrt(2))
        self.value = self.projection(dim, gain=1 / math.sqrt(2))
        self.out = self.projection(dim)

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        return self.mix_near(x_BTD, pad_BT)

    def mix_near(self, x_BTD: Tensor, pad_BT: Tensor | None, *, first: int = 0) -> Tensor:
        """The outputs of all positions, which see the `first` ones besides those of their window."""
        mask = self.window_mask(x_BTD, pad_BT, first=first)

        def attend_near(_: slice, query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            return self.attend_near(query_BTD, key_BTD, value_BTD, mask)

        return self.some_heads_at_a_time(attend_near, *self.projected(x_BTD))

    def window_mask(self, x_BTD: Tensor, pad_BT: Tensor | None, *, first: int = 0) -> WindowMask:
        """Which keys a query sees. A causal layer needs no padding mask: padding is later than every token."""
        return WindowMask(self.span, x_BTD, None if self.role is Role.CAUSAL else pad_BT, first)

    def projected(self, x_BTD: Tensor) -> tuple[Projected, Projected, Projected]:
        """The queries, keys and values."""
        return Projected(x_BTD, self.query), Projected(x_BTD, self.key), Projected(x_BTD, self.value)

    def attend_near(self, query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, mask: WindowMask) -> Tensor:
        """y_BTD: each query over the keys that `mask` lets it see. The width may be that of some of the heads."""
        dropout = self.active_dropout
        return window_attention(query_BTD, key_BTD, value_BTD, mask, head_dim=self.head_dim, dropout=dropout)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        count_B1 = torch.zeros(batch, 1, dtype=torch.long, device=self.out.weight.device)
        return StepState(dynamic={"key": None, "value": None, "count": count_B1})

    def remember(self, x_B1D: Tensor, kept: dict[str, Any], *, last: int) -> dict[str, Any]:
        """The state with the keys and values of the `last` positions, the new one among them; it counts that one."""
        return {
            **kept,
            "key": append(kept["key"], self.split(self.key(x_B1D)))[:, :, -last:],
            "value": append(kept["value"], self.split(self.value(x_B1D)))[:, :, -last:],
            "count": kept["count"] + 1,
        }


@dataclass(frozen=True)
class LocalBlockConfig(QKVConfig):
    """Dot-product attention within blocks: 4 D² weights, O(T block D) time and memory."""

    block: int = setting(64, at_least=1, help="Positions in a block.")
    back: bool = setting(False, help="Each block sees the block before it too.")


@attentions.register("local_block", LocalBlockConfig)
class LocalBlockAttention(NearAttention):
    """softmax(Q Kᵀ / √E) V over the keys of a query's own block, and of the one before with `back`.

    Blocks of `block` positions; CAUSAL sees s <= t of them. The paper's local attention: Parmar et al. 2018, arXiv
    1802.05751, section 3.3, in one dimension (queries' blocks, each with a memory block that holds it). Parameters:
    4 D² (+ 4 D bias). A step costs O(block), whatever the length: the state holds the keys and values of one block
    (two with `back`).
    """

    def __init__(self, config: LocalBlockConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.span = Span(config.block, int(config.back), 0, farthest_ahead=0 if role is Role.CAUSAL else None)

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        block, blocks_before = self.config.block, int(self.config.back)
        recent = self.remember(x_B1D, state.dynamic, last=(1 + blocks_before) * block)
        count_B1 = recent["count"]
        first_seen_B1 = ((count_B1 - 1) // block - blocks_before) * block
        kept = recent["key"].shape[2]
        seen_BS = torch.arange(kept, device=x_B1D.device) + count_B1 - kept >= first_seen_B1
        y_BH1E = attend(self.split(self.query(x_B1D)), recent["key"], recent["value"], bias=seen_BS[:, None, None])
        return self.out(self.join(y_BH1E)), state.advance(recent)


@dataclass(frozen=True)
class SlidingWindowConfig(QKVConfig):
    """Dot-product attention to the nearest positions: 4 D² weights, O(T window D) time and memory."""

    window: int = setting(
        128, at_least=1, help="Visible positions: window / 2 on each side in an encoder, the last window in a decoder."
    )


@attentions.register("sliding_window", SlidingWindowConfig)
class SlidingWindowAttention(NearAttention):
    """softmax(Q Kᵀ / √E) V over the keys s near a query t.

    ENCODER: |t - s| <= window / 2, rounded down; CAUSAL: 0 <= t - s < window. Beltagy et al. 2020, arXiv 2004.05150,
    section 3.1, undilated. Parameters: 4 D² (+ 4 D bias). A step costs O(window): the state holds that many keys and
    values.
    """

    def __init__(self, config: SlidingWindowConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.span = window_span(config.window, causal=role is Role.CAUSAL)

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        recent = self.remember(x_B1D, state.dynamic, last=self.config.window)
        y_BH1E = attend(self.split(self.query(x_B1D)), recent["key"], recent["value"])
        return self.out(self.join(y_BH1E)), state.advance(recent)


@dataclass(frozen=True)
class LongformerConfig(SlidingWindowConfig):
    """A sliding window and a few global positions: 7 D² weights, O(T (window + heads global_tokens) D) time."""

    window: int = setting(
        512, at_least=1, help="Visible positions: window / 2 on each side in an encoder, the last window in a decoder."
    )
    global_tokens: int = setting(
        1, at_least=1, help="The first positions, which see every position and are seen by all."
    )


@attentions.register("longformer", LongformerConfig)
class LongformerAttention(NearAttention):
    """Sliding window, and G = `global_tokens` first positions that see every position and are seen by every one.

    Position t >= G: softmax(q_t · k_s / √E) over s in its window or s < G. Position t < G: the same with projections of
    its own for query, keys and values (`global_query`, …), over all s. Beltagy et al. 2020, arXiv 2004.05150, section
    3.1. The causal form is ours: the same sets, of which only s <= t is seen; so a global position sees the global
    positions up to itself, and everything later sees it. Parameters: 7 D² (+ 7 D bias). A step costs
    O(window + G): the state holds the keys and values of the window and of the global positions.
    """

    def __init__(self, config: LongformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.span = window_span(config.window, causal=role is Role.CAUSAL)
        self.global_query = self.projection(dim, gain=1 / math.sqrt(2))
        self.global_key = self.projection(dim, gain=1 / math.sqrt(2))
        self.global_value = self.projection(dim, gain=1 / math.sqrt(2))

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        globals_ = min(self.config.global_tokens, x_BTD.shape[1])
        y_BTD = self.mix_near(x_BTD, pad_BT, first=globals_)
        return torch.cat([self._attend_from_global(x_BTD, pad_BT, globals_), y_BTD[:, globals_:]], dim=1)

    def _attend_from_global(self, x_BTD: Tensor, pad_BT: Tensor | None, globals_: int) -> Tensor:
        """The outputs of the first positions.

        They are few, so that all positions need no keys and values made for them: q · (A x + a) = (Aᵀ q) · x + q · a,
        and Σ w (B x + b) = B (Σ w x) + b Σ w.
        """
        x_BGD = x_BTD[:, :globals_]
        x_BSD = x_BTD
        seen = None if pad_BT is None else ~pad_BT[:, None, None]
        if self.role is Role.CAUSAL:
            x_BSD, seen = x_BGD, causal_mask(globals_, x_BTD.device)
        key_HED, value_HED = (
            linear.weight.view(self.heads, self.head_dim, -1) for linear in (self.global_key, self.global_value)
        )
        query_BHGE = self.split(self.global_query(x_BGD)) / math.sqrt(self.head_dim)
        logits_BHGS = self._by_row(query_BHGE @ key_HED, x_BSD.transpose(1, 2))
        if self.global_key.bias is not None:  # the same for all keys, so of no effect; yet its gradient is to be 0
            logits_BHGS = logits_BHGS + query_BHGE @ self.global_key.bias.view(self.heads, -1, 1)
        if seen is not None:
            logits_BHGS = logits_BHGS.masked_fill(~seen, torch.finfo(logits_BHGS.dtype).min)
        weight_BHGS = functional.dropout(logits_BHGS.softmax(-1), self.active_dropout)
        y_BHGE = self._by_row(weight_BHGS, x_BSD) @ value_HED.transpose(1, 2)
        if self.global_value.bias is not None:
            y_BHGE = y_BHGE + weight_BHGS.sum(-1, keepdim=True) * self.global_value.bias.view(self.heads, 1, -1)
        return self.join(y_BHGE)

    @staticmethod
    def _by_row(left_BHGI: Tensor, right_BIO: Tensor) -> Tensor:
        """The products of all heads with what they share, in one product a row."""
        return (left_BHGI.flatten(1, 2) @ right_BIO).unflatten(1, left_BHGI.shape[1:3])  # type: ignore[no-any-return, no-untyped-call]

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        empty_BHGE = self.out.weight.new_zeros(batch, self.heads, self.config.global_tokens, self.head_dim)
        names = ("first_key", "first_value", "global_key", "global_value")
        return StepState(dynamic={**super().start(batch).dynamic, **dict.fromkeys(names, empty_BHGE)})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        position_B1 = state.dynamic["count"]
        slot_G = torch.arange(self.config.global_tokens, device=x_B1D.device)
        new_BG = slot_G == position_B1
        recent = self.remember(x_B1D, state.dynamic, last=self.config.window)
        fresh = {
            "first_key": recent["key"][:, :, -1:],
            "first_value": recent["value"][:, :, -1:],
            "global_key": self.split(self.global_key(x_B1D)),
            "global_value": self.split(self.global_value(x_B1D)),
        }
        recent |= {name: torch.where(new_BG[:, None, :, None], new, recent[name]) for name, new in fresh.items()}
        met_BG = slot_G <= position_B1
        kept = recent["key"].shape[2]
        place_BW = torch.arange(kept, device=x_B1D.device) + position_B1 + 1 - kept
        as_global_BH1E = attend(
            self.split(self.global_query(x_B1D)),
            recent["global_key"],
            recent["global_value"],
            bias=met_BG[:, None, None],
        )
        as_other_BH1E = attend(
            self.split(self.query(x_B1D)),
            torch.cat([recent["key"], recent["first_key"]], 2),
            torch.cat([recent["value"], recent["first_value"]], 2),
            bias=torch.cat([place_BW >= self.config.global_tokens, met_BG], 1)[:, None, None],
        )
        is_global_B111 = (position_B1 < self.config.global_tokens)[..., None, None]
        return self.out(self.join(torch.where(is_global_B111, as_global_BH1E, as_other_BH1E))), state.advance(recent)


def window_span(window: int, *, causal: bool) -> Span:
    """|t - s| <= window / 2, or 0 <= t - s < window of a causal layer, in blocks of half a window.

    Larger blocks see more that is too far, smaller ones are slower on the kernel: of the powers of two, 256 is the best
    for a window of 512 and 64 for one of 128 (forward and backward, on a CPU).
    """
    half = window // 2
    block = max(half, 1)
    if causal:
        return Span(block, -(-(window - 1) // block), 0, farthest_back=window - 1, farthest_ahead=0)
    return Span(block, 1, 1, farthest_back=half, farthest_ahead=half)
