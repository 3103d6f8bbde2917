"""Base classes of layers with queries, keys and values: projections, heads and the cache.

To write such a layer, subclass `QKVAttention`, declare `roles` and write one method, `mix`, which computes the heads of
the output from the heads of queries, keys and values. Also write `mix_step` if a state smaller than all keys and values
suffices for the next position; the default keeps all keys and values and calls `mix`. If heads do not interact before
the output projection, subclass `HeadwiseAttention` (in `headwise.py`) and write `mix_heads` instead, which saves memory
on long inputs. A layer with heads but other projections subclasses `HeadedAttention` and writes `forward`, `start` and
`step`.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, K heads of keys and values,
E width of a head.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqtk.attention.base import Attention, AttentionConfig, Role, State, StepState, attentions
from seqtk.config.fields import probability, setting
from seqtk.modules.linear import Linear, joint_product, project, xavier_linear
from seqtk.ops import cache
from seqtk.ops.tensors import join_heads, split_heads
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class QKVConfig(AttentionConfig):
    """The settings of attention layers with heads."""

    heads: int | None = setting(None, at_least=1, help="Number of attention heads. null: the number of the model.")
    dropout: float = probability(0.0, help="Dropout of the attention weights.")
    bias: bool = setting(True, help="Give the projections a bias.")


class HeadedAttention(Attention):
    """Base class of layers that split their width into heads.

    Raises:
        UserError: The width is not a multiple of the heads, or the number of heads is not set.
    """

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.heads is None:
            raise UserError(
                f"Attention '{attentions.name_of(type(config))}': the number of heads is not set.",
                "Outside a model it has no default. Set heads.",
            )
        if dim % config.heads:
            raise UserError(
                f"A width of {dim} cannot be split into {config.heads} heads.", "Change the width or the heads."
            )
        self.heads: int = config.heads
        self.head_dim = dim // config.heads

    @property
    def active_dropout(self) -> float:
        """The dropout rate in training mode, else 0."""
        return float(self.config.dropout) if self.training else 0.0

    def projection(self, input_dim: int, output_dim: int | None = None, *, gain: float = 1.0) -> Linear:
        """Returns a linear map with Xavier-uniform weights and zero bias. `output_dim` defaults to the width."""
        return xavier_linear(input_dim, output_dim or self.dim, bias=self.config.bias, gain=gain)

    def add_projections(self, *, kv_heads: int | None = None, out_projection: bool = True) -> None:
        """Adds the projections `query`, `key`, `value` and `out`. `out` is the identity if `out_projection` is False.

        In cross-attention, keys and values come from the memory. `query`, `key` and `value` are initialized as the
        parts of one Xavier-uniform matrix.
        """
        source_dim = self.memory_dim if self.role is Role.CROSS else self.dim
        kv_dim = (kv_heads or self.heads) * self.head_dim
        self.query = self.projection(self.dim, gain=1 / math.sqrt(2))
        self.key = self.projection(source_dim, kv_dim, gain=1 / math.sqrt(2))
        self.value = self.projection(source_dim, kv_dim, gain=1 / math.sqrt(2))
        self.out: nn.Linear = self.projection(self.dim) if out_projection else nn.Identity()  # type: ignore[assignment]

    def joint_heads(self, x_BTD: Tensor, maps: tuple[Linear, ...], *, wide: bool) -> tuple[Tensor, ...]:
        """Applies several linear maps to x, and splits their outputs into heads.

        Returns a contiguous y_BHTE for each map, in float32 or wider if `wide`.
        """
        y_BTO = joint_product(x_BTD, maps)
        y_NBHTE = y_BTO.view(*y_BTO.shape[:2], len(maps), -1, self.head_dim).permute(2, 0, 3, 1, 4)
        dtype = torch.float32 if wide and y_BTO.dtype.itemsize < 4 else y_BTO.dtype
        return y_NBHTE.to(dtype, memory_format=torch.contiguous_format).contiguous().unbind()

    def split(self, x_BTD: Tensor) -> Tensor:
        """Splits x_BTD into heads x_BHTE. A narrower x has fewer heads."""
        return split_heads(x_BTD, self.head_dim)

    def join(self, x_BHTE: Tensor) -> Tensor:
        """Joins the heads x_BHTE into x_BTD."""
        return join_heads(x_BHTE)


class QKVAttention(HeadedAttention):
    """Base class of layers with queries, keys and values: out(mix(query(x), key(source), value(source))).

    The source is x, or the memory in cross-attention.
    """

    is_wide_on_cpu: bool = False
    """True if `mix` computes in float32 on a CPU. Queries, keys and values are then converted together."""

    def __init__(
        self,
        config: Any,
        *,
        dim: int,
        role: Role,
        memory_dim: int | None = None,
        kv_heads: int | None = None,
        out_projection: bool = True,
    ) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.add_projections(kv_heads=kv_heads, out_projection=out_projection)

    def mix(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        """Returns the outputs y_BHTE of the heads.

        In the causal role, the queries belong to the last T of the S positions. T is S in `forward` and 1 in the
        default `mix_step`.
        """
        raise NotImplementedError

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns (y_BH1E, new state) for the next position of a causal layer. `start_mix` returns the first state."""
        state = cache.remember(state, key=key_BH1E, value=value_BH1E)
        key_BHSE, value_BHSE = (torch.cat(cache.segments(state, name), dim=2) for name in ("key", "value"))
        return self.mix(query_BH1E, key_BHSE, value_BHSE, pad_BS=None), state

    def start_mix(self, batch: int) -> State:
        """Returns the state before the first `mix_step`."""
        return cache.empty("key", "value")

    def compress(self, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> State:
        """Computes, once per memory, the state that cross-attention keeps while decoding. `read` receives it."""
        return {"key": key_BHSE, "value": value_BHSE, "pad": pad_BS}

    def read(self, query_BHTE: Tensor, memory: State) -> Tensor:
        """Returns the outputs y_BHTE of the heads, where `memory` is the output of `compress`."""
        return self.mix(query_BHTE, memory["key"], memory["value"], pad_BS=memory["pad"])

    def queries(self, x_BTD: Tensor) -> Tensor:
        """Projects x, and returns the heads of the queries, query_BHTE."""
        return self.query_heads(self.query(x_BTD))

    def keys(self, x_BSM: Tensor) -> Tensor:
        """Projects x, and returns the heads of the keys, key_BHSE."""
        return self.key_heads(self.key(x_BSM))

    def values(self, x_BSM: Tensor) -> Tensor:
        """Projects x, and returns the heads of the values, value_BHSE."""
        return self.split(self.value(x_BSM))

    def query_heads(self, query_BTD: Tensor) -> Tensor:
        """Splits the projected queries into heads, query_BHTE."""
        return self.split(query_BTD)

    def key_heads(self, key_BSD: Tensor) -> Tensor:
        """Splits the projected keys into heads, key_BHSE."""
        return self.split(key_BSD)

    def joint_maps(self) -> list[tuple[Linear, ...]]:
        maps = (self.key, self.value) if self.role is Role.CROSS else (self.query, self.key, self.value)
        return [maps] if len(set(maps)) == len(maps) else []

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        source = x_BTD if memory_BSM is None else memory_BSM
        self.check_length(source.shape[1])
        wide = self.is_wide_on_cpu and x_BTD.device.type == "cpu"
        if memory_BSM is None:
            query, key, value = project(x_BTD, (self.query, self.key, self.value), wide=wide)
        else:
            (query,) = project(x_BTD, (self.query,), wide=wide)
            key, value = project(memory_BSM, (self.key, self.value), wide=wide)
        y_BHTE = self.mix(self.query_heads(query), self.key_heads(key), self.split(value), pad_BS=pad_BS)
        return self.out(self.join(y_BHTE)), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        if memory_BSM is None:
            return StepState(dynamic=self.start_mix(batch))
        self.check_length(memory_BSM.shape[1])
        return StepState(static=self.compress(self.keys(memory_BSM), self.values(memory_BSM), pad_BS=pad_BS))

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        query_BH1E = self.queries(x_B1D)
        if self.role is Role.CROSS:
            y_BH1E = self.read(query_BH1E, state.static)
        else:
            y_BH1E, dynamic = self.mix_step(query_BH1E, self.keys(x_B1D), self.values(x_B1D), state.dynamic)
            state = state.advance(dynamic)
        return self.out(self.join(y_BH1E)), state
