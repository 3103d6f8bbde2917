"""Mega: one head of gated attention over a moving average (Ma et al. 2022, arXiv 2209.10655).

B batch, T length, D width, N averages of a channel, Z width of queries and keys, V width of the values, C chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Attention, AttentionConfig, Role, State, StepState, attentions
from seqtk.config.fields import probability, setting
from seqtk.modules.linear import xavier_linear
from seqtk.ops import cache
from seqtk.ops.dot_product import attend, attend_last, padding_bias
from seqtk.ops.ema import damped_average
from seqtk.ops.rotary import rotate
from seqtk.ops.tensors import in_blocks, to_autocast_dtype, to_fp32, zero_padding
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class MegaConfig(AttentionConfig):
    """A moving average, then gated single-head attention: 8.25 D² + 4 D N weights; O(T² D) or, chunked, O(T C D) time.

    The layer returns the difference from its input, so the residual connection around the layer completes Mega's gate.
    In blocks that normalize after the residual, this is the published layer.
    """

    averages: int = setting(
        16, at_least=1, help="Moving averages of each channel. Half of them run backwards in an encoder."
    )
    shared: int | None = setting(
        None, at_least=1, help="Width of queries and keys. null: a quarter of the layer's width."
    )
    values: int | None = setting(None, at_least=1, help="Width of the values. null: twice the layer's width.")
    chunk: int | None = setting(
        None, at_least=1, help="Attend only within chunks of this many positions. null: no chunks."
    )
    rotary: bool = setting(True, help="Rotate queries and keys by their positions.")
    dropout: float = probability(0.0, help="Dropout of the attention weights.")


@attentions.register("mega", MegaConfig)
class Mega(Attention):
    """One head of gated attention over a damped moving average (section 3.3).

        y = φ ⊙ (Ĥ - x), Ĥ = silu(m W_h + b_h + (γ ⊙ A) U), φ = sigmoid(m W_φ + b_φ), γ = silu(m W_γ + b_γ)

    The average is m = silu(average(x) + ω ⊙ x). The attention is A = softmax(q kᵀ / √Z) silu(x W_v + b_v), where q and
    k are z = silu(m W_z + b_z), each with a separate scale and shift, and rotated by position. With `chunk`, positions
    attend only within chunks of the row; the average crosses chunks (section 3.5: Mega-chunk).

    Parameters: 4 D N + D + 2 D² + 3 D V + D Z + 2 D + 2 V + 5 Z. O(T D (D + N)) time, and O(T² V) for attention (with
    chunks O(T C V)); a step is O(t V) (with chunks O(C V)). The encoder of the authors' code has N averages in each
    direction; seqtk has N / 2 in each, so that a layer has the same size in both roles. seqtk omits the authors'
    relative position bias.
    """

    roles = Role.ENCODER | Role.CAUSAL

    def __init__(self, config: MegaConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.subquadratic = config.chunk is not None
        shared, values = self.widths = config.shared or max(dim // 4, 1), config.values or 2 * dim  # Z, V
        if role is Role.ENCODER and config.averages % 2:
            raise UserError(
                f"attention.averages={config.averages} must be even in an encoder, where half of them run backwards."
            )
        if config.rotary and shared % 2:
            raise UserError(
                f"attention.rotary=true requires an even width of queries and keys, but it is {shared}.",
                "Set attention.shared to an even number, or attention.rotary=false.",
            )
        self.average = DampedAverage(dim, config.averages, both_ways=role is Role.ENCODER)
        self.skip = nn.Parameter(torch.randn(dim))
        self.value = xavier_linear(dim, values, bias=True)
        self.base = xavier_linear(dim, 2 * dim + shared + values, bias=True)  # φ, Ĥ, z and γ
        self.scales = nn.Parameter(torch.randn(2, shared) * 0.02)  # of queries and of keys
        self.shifts = nn.Parameter(torch.zeros(2, shared))
        self.attended = xavier_linear(values, dim, bias=False)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        x_BTD = zero_padding(x_BTD, pad_BS)
        gates = self._gates(x_BTD, self.average(x_BTD))
        position_1T = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        query_B1TZ, key_B1TZ = self._queries_and_keys(gates["shared"], position_1T)
        attended_BTV = self._attend(query_B1TZ, key_B1TZ, self._values(x_BTD), pad_BS)
        y_BTD = self._change(x_BTD, attended_BTV, gates)
        return zero_padding(y_BTD, pad_BS), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic={"average": self.average.start(batch), **cache.empty("key", "value")})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        average_B1D, average_BDN = self.average.step(x_B1D, state.dynamic["average"])
        gates = self._gates(x_B1D, average_B1D)
        kept = state.dynamic
        if cache.length(kept, "key") == self.config.chunk:
            kept = cache.empty("key", "value")
        position_11 = torch.full((1, 1), cache.length(kept, "key"), device=x_B1D.device)
        query_B11Z, key_B11Z = self._queries_and_keys(gates["shared"], position_11)
        kept = cache.remember({**kept, "average": average_BDN}, key=key_B11Z, value=self._values(x_B1D))
        return self._change(x_B1D, attend_last(query_B11Z, kept)[:, 0], gates), state.advance(kept)

    def _gates(self, x_BTD: Tensor, average_BTD: Tensor) -> dict[str, Tensor]:
        """Returns a dict of tensors that depend on the moving average: φ, the part of Ĥ without attention, z and γ."""
        moved_BTD = functional.silu(average_BTD + self.skip * x_BTD).to(x_BTD.dtype)
        update, hidden, z, reset = self.base(moved_BTD).split([self.dim, self.dim, *self.widths], -1)
        return {
            "update": update.sigmoid(),
            "hidden": hidden,
            "shared": functional.silu(z),
            "reset": functional.silu(reset),
        }

    def _queries_and_keys(self, shared_BTZ: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the queries and the keys, each B1TZ."""
        both = [shared_BTZ[:, None] * scale + shift for scale, shift in zip(self.scales, self.shifts, strict=True)]
        query_B1TZ, key_B1TZ = (rotate(x, positions_BT) for x in both) if self.config.rotary else both
        return query_B1TZ, key_B1TZ

    def _values(self, x_BTD: Tensor) -> Tensor:
        return functional.silu(self.value(x_BTD))[:, None]

    def _attend(self, query_B1TZ: Tensor, key_B1TZ: Tensor, value_B1TV: Tensor, pad_BT: Tensor | None) -> Tensor:
        """Returns the attention outputs, BTV. Queries attend within their row, or within their chunk of the row."""
        batch, _, length, _ = query_B1TZ.shape
        size, causal = min(self.config.chunk or length, length), self.role is Role.CAUSAL
        if length % size and pad_BT is None and not causal:
            pad_BT = torch.zeros(batch, length, dtype=torch.bool, device=query_B1TZ.device)
        query, key, value = (
            in_blocks(x[:, 0], size).flatten(0, 1)[:, None] for x in (query_B1TZ, key_B1TZ, value_B1TV)
        )
        pad = None if pad_BT is None else in_blocks(pad_BT, size, fill=True).flatten(0, 1)
        bias, is_causal = padding_bias(pad, causal_length=size if causal else None), causal and pad is None
        y = attend(
            query, key, value, bias=bias, causal=is_causal, dropout=self.config.dropout if self.training else 0.0
        )
        return y.reshape(batch, -1, y.shape[-1])[:, :length]

    def _change(self, x_BTD: Tensor, attended_BTV: Tensor, gates: dict[str, Tensor]) -> Tensor:
        hidden_BTD = functional.silu(gates["hidden"] + self.attended(gates["reset"] * attended_BTV))
        return to_autocast_dtype(gates["update"] * (hidden_BTD - x_BTD))


class DampedAverage(nn.Module):
    """A damped moving average: y_t = η · h_t / √N, h_t = α ⊙ β x_t + (1 - α ⊙ δ) ⊙ h_{t-1} per channel (section 3.1).

    h_t has N elements per channel. α and δ are sigmoids of parameters, and √N is from the official code. With
    `both_ways` the second half of the averages runs from the end to the start. 4 D N parameters; O(T D (C + N)) time,
    O(T D (1 + N / C)) memory. Unlike with a Fourier transform, later positions do not affect earlier ones even by
    rounding.
    """

    def __init__(self, dim: int, averages: int, *, both_ways: bool) -> None:
        super().__init__()
        self.both_ways = both_ways
        alternating_N = torch.ones(averages)
        alternating_N[1::2] = -1
        self.share = nn.Parameter(torch.randn(dim, averages) * 0.2)  # sigmoid: α
        self.damping = nn.Parameter(torch.randn(dim, averages) * 0.2)  # sigmoid: δ
        self.expand = nn.Parameter(torch.randn(dim, averages) * 0.02 + alternating_N)  # β
        self.collapse = nn.Parameter(torch.randn(dim, averages))  # η

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the averages at all positions, in float32 or wider."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_BTD = to_fp32(x_BTD)
            factors = self._factors()
            if not self.both_ways:
                return damped_average(x_BTD, *factors)
            half = self.share.shape[1] // 2
            onwards = damped_average(x_BTD, *(factor_DN[:, :half] for factor_DN in factors))
            return onwards + damped_average(x_BTD.flip(1), *(factor_DN[:, half:] for factor_DN in factors)).flip(1)

    def start(self, batch: int) -> Tensor:
        """Returns the state h_BDN before the first position."""
        return to_fp32(self.share).new_zeros(batch, *self.share.shape)

    def step(self, x_B1D: Tensor, state_BDN: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the average at the next position, and the state after it."""
        log_decay_DN, in_DN, out_DN = self._factors()
        state_BDN = log_decay_DN.exp() * state_BDN + in_DN * to_fp32(x_B1D).transpose(1, 2)
        return (state_BDN * out_DN).sum(-1)[:, None], state_BDN

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the log decays, log(1 - α δ), the input factors α β and the output factors η / √N, each DN."""
        share_DN = to_fp32(self.share).sigmoid()
        decay_DN = 1 - share_DN * to_fp32(self.damping).sigmoid()
        out_DN = to_fp32(self.collapse) / self.collapse.shape[1] ** 0.5
        return decay_DN.clamp(min=1e-30).log(), share_DN * to_fp32(self.expand), out_DN
