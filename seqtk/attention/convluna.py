"""ConvLuna: Luna whose slots read a filtered context, at a learned temperature.

B batch, T query length, S length of the context, D width of the layer, H heads, E = D / H, P memory slots, N windows,
K positions a window.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, StepState, attentions
from seqtk.attention.luna import Luna, LunaConfig
from seqtk.config.fields import setting
from seqtk.ops.depthwise import depthwise
from seqtk.utils.errors import UserError

Temperature = Literal["unit", "sqrt", "learn"]


@dataclass(frozen=True)
class ConvLunaConfig(LunaConfig):
    """Luna whose slots read keys and values that are filtered along time: Luna's cost and T K D more."""

    tie_kv: bool = setting(False, help="Compute keys and values with one projection.")
    filter: Literal["conv", "max_pool", "mean_pool", "none"] = setting(
        "conv", help="Filter over keys and values. conv: one kernel per head."
    )
    kernel_size: int = setting(4, at_least=1, help="Positions in a window of the filter.")
    stride: int = setting(1, at_least=1, help="Positions between windows. Must be 1 in a decoder's self-attention.")
    pack_temperature: Temperature = setting(
        "learn", help="Temperature of the slots' softmax: 1, √E, or learned, starting at √E."
    )
    unpack_temperature: Temperature = setting("learn", help="Temperature of the queries' softmax.")
    sharing: Literal["none", "qkv", "simplified"] = setting(
        "none", help="qkv: unpack uses the weights of pack. simplified: there is no value projection."
    )


@attentions.register("convluna", ConvLunaConfig)
class ConvLuna(Luna):
    """Luna with a filter before the slots (Yorsh et al. 2024, arXiv 2404.00798, and the authors' code).

    Pack: Y = softmax(P Wq' f(C Wk')ᵀ / τ) f(C Wv') per head; unpack as Luna's, with a τ of its own. τ is 1, √E, or the
    exp of a trained scalar.

    The filter f slides over time within a head. `conv`: Σ_i w_i c_(t+i) with one kernel of K weights a head, the same
    for all its dimensions and for keys and values; from U(-1/√K, 1/√K). Poolings are of the positions that exist.
    At stride 1 windows are centred, (K - 1) // 2 positions to the left; at a larger stride window j starts at position
    j · stride of its row, as long as that exists. (The authors' code leaves out a last window that is not whole, so
    that a short row has none.) What is not there counts as 0 in `conv`.

    CAUSAL is ours: windows end at their own position, and Luna's causal form follows; stride 1 only. A step costs
    O(P D + K D).

    Sharing `qkv`: pack and unpack have the same query, key and value weights. `simplified`, which the authors ran: the
    same query, key and output weights (so Y goes through `out`, except CAUSAL), and values are the context itself.
    CROSS can share only if the memory is as wide as the layer.

    Parameters: Luna's; with `qkv` P D + 4 D² (tied 3 D²), simplified P D + 3 D² (+ D bias each); H K more for `conv`,
    and 1 for each learned temperature.
    """

    def __init__(self, config: ConvLunaConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self._check()
        self.kernel: nn.Parameter | None = None
        if config.filter == "conv":
            bound = 1 / math.sqrt(config.kernel_size)
            self.kernel = nn.Parameter(torch.empty(self.heads, config.kernel_size).uniform_(-bound, bound))
        for part in ("pack", "unpack"):
            learned = getattr(config, f"{part}_temperature") == "learn"
            log = nn.Parameter(torch.full((1,), 0.5 * math.log(self.head_dim))) if learned else None
            self.register_parameter(f"log_{part}_temperature", log)

    def _check(self) -> None:
        config = self.config
        if config.sharing != "none" and self.role is Role.CROSS and self.memory_dim != self.dim:
            raise UserError(
                f"attention.sharing={config.sharing} reads the memory with the slots' own weights,",
                f"but the memory is {self.memory_dim} wide and the layer {self.dim}.",
                "Use attention.sharing=none there.",
            )
        if config.sharing == "simplified" and config.tie_kv:
            raise UserError(
                "attention.sharing=simplified has no values' weights, which attention.tie_kv=true could tie."
            )
        if config.stride > config.kernel_size:
            raise UserError(
                f"attention.stride={config.stride} must be at most attention.kernel_size={config.kernel_size}:",
                "else there would be positions that no window has.",
            )
        if config.stride > 1 and (self.role is Role.CAUSAL or config.filter == "none"):
            what = "a decoder's self-attention" if self.role is Role.CAUSAL else "attention.filter=none"
            raise UserError(f"attention.stride={config.stride} is not possible with {what}; use 1.")

    def _serving(self) -> dict[str, str | None]:
        serving = super()._serving()
        if self.config.sharing != "none":
            serving = {use: name and name.removeprefix("pack_") for use, name in serving.items()}
        if self.config.sharing == "simplified":
            serving |= {use: None for use in serving if use.endswith("value")}
        return serving

    def monitored(self) -> dict[str, float]:
        """The learned temperatures."""
        logs = {part: getattr(self, f"log_{part}_temperature") for part in ("pack", "unpack")}
        return {f"{part}_temperature": float(log.detach().exp()) for part, log in logs.items() if log is not None}

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        state = super().start(batch, memory_BSM, pad_BS=pad_BS)
        if self.role is Role.CROSS:
            return state
        like = state.static["pack_query"]
        none_BHKE = like.new_zeros(batch, self.heads, self.config.kernel_size - 1, self.head_dim)
        pad_BK = torch.ones_like(none_BHKE[:, 0, :, 0], dtype=torch.bool)
        return state.advance({**state.dynamic, "window": [none_BHKE] * 3, "pad": pad_BK})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        if self.role is Role.CROSS:
            return super().step(x_B1D, state)
        new = self._project(("pack_key", "key", "value"), x_B1D)
        window = [
            torch.cat([old_BHKE, new_BH1E], 2) for old_BHKE, new_BH1E in zip(state.dynamic["window"], new, strict=True)
        ]
        pad_BK = functional.pad(state.dynamic["pad"], (0, 1))
        context = [self._read(x_BHKE, slice(None), pad_BK)[:, :, -1:] for x_BHKE in window]
        y_B1D, state = self._causal_step(x_B1D, state, context)
        kept = {"window": [x_BHKE[:, :, 1:] for x_BHKE in window], "pad": pad_BK[:, 1:]}
        return y_B1D, state.advance({**state.dynamic, **kept})

    def _scale(self, part: str) -> float | Tensor:
        log = getattr(self, f"log_{part}_temperature")
        if log is not None:
            return torch.exp(-log)
        return 1.0 if getattr(self.config, f"{part}_temperature") == "unit" else super()._scale(part)

    def _pack(self, slots_BPD: Tensor, context_BSM: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        packed_BPD = super()._pack(slots_BPD, context_BSM, pad_BS=pad_BS)
        return cast(Tensor, self.out(packed_BPD)) if self.config.sharing == "simplified" else packed_BPD

    def _read_padding(self, pad_BS: Tensor | None) -> Tensor | None:
        return None if pad_BS is None else pad_BS[:, :: self.config.stride]

    def _reading(self) -> list[Tensor]:
        return [] if self.kernel is None else [self.kernel]

    def _read(self, x_BHSE: Tensor, some: slice, pad_BS: Tensor | None) -> Tensor:
        """x_BHNE, one for each window of each row; 0 where that is padding."""
        if self.config.filter == "none":
            return x_BHSE
        size, stride, length = self.config.kernel_size, self.config.stride, x_BHSE.shape[2]
        windows = -(-length // stride)
        before = size - 1 if self.role is Role.CAUSAL else (size - 1) // 2 if stride == 1 else 0
        after = (windows - 1) * stride + size - before - length
        around = (0, 0, before, after)
        pad_B1S1 = None if pad_BS is None else pad_BS[:, None, :, None]
        pool = self.config.filter == "max_pool"
        nothing = -math.inf if pool else 0.0
        if pad_B1S1 is not None:
            x_BHSE = x_BHSE.masked_fill(pad_B1S1, nothing)
        if self.kernel is not None:
            x_BND = depthwise(self.join(x_BHSE), self.kernel[some], before=before, after=after, stride=stride)
            x_BHNE = self.split(x_BND)
        elif pool:
            x_BHNE = functional.max_pool2d(functional.pad(x_BHSE, around, value=nothing), (size, 1), (stride, 1))
        else:
            real_B1S1 = torch.ones_like(x_BHSE[:1, :1, :, :1]) if pad_B1S1 is None else ~pad_B1S1
            share_B1N1 = functional.avg_pool2d(
                functional.pad(real_B1S1.to(x_BHSE.dtype), around), (size, 1), (stride, 1)
            )
            x_BHSE = functional.pad(x_BHSE, around)
            x_BHNE = functional.avg_pool2d(x_BHSE, (size, 1), (stride, 1)) / share_B1N1.clamp(min=0.5 / size)
        return x_BHNE if pad_B1S1 is None else x_BHNE.masked_fill(pad_B1S1[:, :, ::stride], 0)
