"""ConvLuna: Luna with filtered keys and values and learned temperatures (Yorsh et al. 2024, arXiv 2404.00798).

B batch, T query length, S length of the context, D width of the layer, H heads, E = D / H, P memory slots, N windows,
K positions in a window.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, StepState, attentions
from seqtk.attention.headwise import ALL_HEADS
from seqtk.attention.luna import Luna, LunaConfig
from seqtk.config.fields import setting
from seqtk.ops.depthwise import depthwise
from seqtk.utils.errors import UserError

Temperature = Literal["unit", "sqrt", "learn"]


@dataclass(frozen=True)
class ConvLunaConfig(LunaConfig):
    """Luna with a filter over the positions of keys and values. Takes O(T kernel_size D) more time than Luna."""

    tie_kv: bool = setting(False, help="Compute keys and values with one projection.")
    filter: Literal["conv", "max_pool", "mean_pool", "none"] = setting(
        "conv", help="Filter over keys and values. conv: one kernel per head."
    )
    kernel_size: int = setting(4, at_least=1, help="Positions in a window of the filter.")
    stride: int = setting(1, at_least=1, help="Positions between windows. Must be 1 in a decoder's self-attention.")
    pack_temperature: Temperature = setting(
        "learn", help="Temperature of the softmax over the context: 1, √E, or learned, starting at √E."
    )
    unpack_temperature: Temperature = setting("learn", help="Temperature of the softmax over the slots.")
    sharing: Literal["none", "qkv", "simplified"] = setting(
        "none",
        help="Weights that the steps pack and unpack share. qkv: query, key and value. simplified: query, key and out; "
        "the layer then has no value weights.",
    )


@attentions.register("convluna", ConvLunaConfig)
class ConvLuna(Luna):
    """Luna with a filter over the keys and values that the memory slots attend to.

    Details that the paper omits are from the authors' code. With the symbols of `Luna`, pack is Y = softmax(P Wq' f(C
    Wk')ᵀ / τ) f(C Wv') per head. Unpack is as in `Luna`, with a separate τ. A temperature τ is 1, √E, or the exp of a
    trained scalar.

    The filter f slides over the positions within a head. `conv`: Σ_i w_i c_(t+i) with K weights per head, shared by its
    dimensions and by keys and values, initialized from U(-1/√K, 1/√K); positions outside the row count as 0. Pooling
    ignores positions outside the row. At stride 1 windows are centered, with (K - 1) // 2 positions before the center;
    at a larger stride window j starts at position j · stride, for every such position in the row. (The authors' code
    drops an incomplete last window, so a short row has no window.)

    The paper has no causal form. In seqtk's causal form, the stride is 1, the window of a position ends at this
    position, and the filtered keys and values are used as in Luna's causal form. A step costs O(P D + K D).

    `sharing=qkv`: pack and unpack have the same query, key and value weights. `sharing=simplified`, which the authors
    ran: pack and unpack have the same query, key and output weights (Y goes through `out`, except CAUSAL), and the
    values are the context itself. CROSS can share only if the memory is as wide as the layer.

    Parameters: as in `Luna` without sharing; P D + 4 D² with `qkv` (3 D² if tied); P D + 3 D² with `simplified` (+ D
    bias per matrix). `conv` adds H K parameters, and each learned temperature 1.
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
        config, causal = self.config, self.role is Role.CAUSAL
        if config.sharing != "none" and self.role is Role.CROSS and self.memory_dim != self.dim:
            raise UserError(
                f"attention.sharing={config.sharing} shares weights, which requires a memory as wide as the layer.",
                f"The memory is {self.memory_dim} wide and the layer {self.dim}.",
                "Set attention.sharing=none.",
            )
        if config.sharing == "simplified" and config.tie_kv:
            raise UserError(
                "attention.tie_kv=true is not possible with attention.sharing=simplified, which has no value weights.",
                "Set attention.tie_kv=false.",
            )
        if config.stride > config.kernel_size:
            raise UserError(
                f"attention.stride={config.stride} must be at most attention.kernel_size={config.kernel_size}.",
                "Otherwise some positions are in no window.",
            )
        if config.stride > 1 and (causal or config.filter == "none"):
            place = "in a decoder's self-attention" if causal else "with attention.filter=none"
            raise UserError(f"attention.stride={config.stride} is not possible {place}.", "Set attention.stride=1.")

    def projection_names(self) -> dict[str, str | None]:
        names = super().projection_names()
        if self.config.sharing != "none":
            names = {use: name and name.removeprefix("pack_") for use, name in names.items()}
        if self.config.sharing == "simplified":
            names |= {use: None for use in names if use.endswith("value")}
        return names

    def monitored(self) -> dict[str, float]:
        """Returns the learned temperatures."""
        logs = {part: getattr(self, f"log_{part}_temperature") for part in ("pack", "unpack")}
        return {f"{part}_temperature": float(log.detach().exp()) for part, log in logs.items() if log is not None}

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        state = super().start(batch, memory_BSM, pad_BS=pad_BS)
        if self.role is Role.CROSS:
            return state
        shape = batch, self.heads, self.config.kernel_size - 1, self.head_dim
        none_BHKE = state.static["pack_query"].new_zeros(shape)
        pad_BK = torch.ones_like(none_BHKE[:, 0, :, 0], dtype=torch.bool)
        return state.advance({**state.dynamic, "window": [none_BHKE] * 3, "pad": pad_BK})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        if self.role is Role.CROSS:
            return super().step(x_B1D, state)
        new = self.project(("pack_key", "key", "value"), x_B1D)
        window = [torch.cat(pair, 2) for pair in zip(state.dynamic["window"], new, strict=True)]
        pad_BK = functional.pad(state.dynamic["pad"], (0, 1))
        context = [self.filtered(x_BHKE, ALL_HEADS, pad_BK)[:, :, -1:] for x_BHKE in window]
        y_B1D, state = self.causal_step(x_B1D, state, context)
        kept = {"window": [x_BHKE[:, :, 1:] for x_BHKE in window], "pad": pad_BK[:, 1:]}
        return y_B1D, state.advance({**state.dynamic, **kept})

    def pack(self, slots_BPD: Tensor, context_BSM: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        packed_BPD = super().pack(slots_BPD, context_BSM, pad_BS=pad_BS)
        return self.out(packed_BPD) if self.config.sharing == "simplified" else packed_BPD

    def scale(self, part: str) -> float | Tensor:
        log = getattr(self, f"log_{part}_temperature")
        if log is not None:
            return torch.exp(-log)
        return 1.0 if getattr(self.config, f"{part}_temperature") == "unit" else super().scale(part)

    def filtered(self, x_BHSE: Tensor, heads: slice, pad_BS: Tensor | None) -> Tensor:
        """Returns x_BHNE, one filtered vector per window, or x_BHSE without a filter.

        Vector n is 0 if position n · stride is padding.
        """
        if self.config.filter == "none":
            return x_BHSE
        size, stride, length = self.config.kernel_size, self.config.stride, x_BHSE.shape[2]
        windows = -(-length // stride)
        before = size - 1 if self.role is Role.CAUSAL else (size - 1) // 2 if stride == 1 else 0
        after = (windows - 1) * stride + size - before - length
        pad_B1S1 = None if pad_BS is None else pad_BS[:, None, :, None]
        fill = -math.inf if self.config.filter == "max_pool" else 0.0
        if pad_B1S1 is not None:
            x_BHSE = x_BHSE.masked_fill(pad_B1S1, fill)

        def pooled(pool: Callable[..., Tensor], x: Tensor) -> Tensor:
            return pool(functional.pad(x, (0, 0, before, after), value=fill), (size, 1), (stride, 1))

        if self.kernel is not None:
            x_BND = depthwise(self.join(x_BHSE), self.kernel[heads], before=before, after=after, stride=stride)
            x_BHNE = self.split(x_BND)
        elif self.config.filter == "max_pool":
            x_BHNE = pooled(functional.max_pool2d, x_BHSE)
        else:
            real_B1S1 = torch.ones_like(x_BHSE[:1, :1, :, :1]) if pad_B1S1 is None else (~pad_B1S1).to(x_BHSE.dtype)
            share_B1N1 = pooled(functional.avg_pool2d, real_B1S1)
            x_BHNE = pooled(functional.avg_pool2d, x_BHSE) / share_B1N1.clamp(min=0.5 / size)
        return x_BHNE if pad_B1S1 is None else x_BHNE.masked_fill(pad_B1S1[:, :, ::stride], 0)

    def filtered_padding(self, pad_BS: Tensor | None) -> Tensor | None:
        return None if pad_BS is None else pad_BS[:, :: self.config.stride]

    def filter_parameters(self) -> Iterable[Tensor]:
        return () if self.kernel is None else (self.kernel,)
