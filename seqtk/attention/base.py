"""What every attention layer is: one class, up to three roles, a parallel form and a step form that agree.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head.
"""

import enum
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqtk.config.registry import Registry
from seqtk.modules.dropout import check_rate
from seqtk.utils.errors import UserError

State = Any
"""A pytree whose leaves are tensors with the batch first, or None: reordered by one `tree_map`."""


class Role(enum.Flag):
    """What a layer is used as; one instance has one role for life."""

    ENCODER = enum.auto()
    """Every position may see every other."""
    CAUSAL = enum.auto()
    """Position t sees positions <= t; appending positions never changes earlier outputs."""
    CROSS = enum.auto()
    """Queries read a memory of another length."""


@dataclass(frozen=True)
class AttentionConfig:
    """The base of every attention layer's config: a field of this type is a slot for any of them."""


attentions: Registry["Attention"] = Registry("attention", AttentionConfig)


class Attention(nn.Module):
    """A layer that mixes positions.

    Padding is True in `pad_BS` at positions of what is attended to (the memory for CROSS, else `x` itself) that do not
    exist. Rows are numbered from 0 at their first real position: `positions_BT` says how, and None means 0, 1, 2, …
    which is right for right-padded rows. Outputs at padding are finite and mean nothing.
    """

    roles: ClassVar[Role]
    subquadratic: bool = False
    """Whether no tensor it makes, and so neither its time, grows with the square of the length."""
    slot: str = "attention"
    """The key at which its config stands, which a model sets."""

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        """`memory_dim` is the width of the memory a CROSS layer reads, `dim` if None."""
        super().__init__()
        if role not in self.roles:
            name = attentions.name_of(type(config))
            able = [other for other in attentions if role in attentions.class_of(attentions.config_type(other)).roles]
            raise UserError(
                f"Attention '{name}' cannot be {_ROLE_WORDS[role]}.",
                f"These can: {', '.join(able)}.",
            )
        self.config, self.dim, self.role = config, dim, role
        self.memory_dim = memory_dim or dim

    @classmethod
    def parameter_count(cls, config: Any, *, dim: int, memory_dim: int | None = None) -> int:
        """The number of trained parameters, by the formula that the class's docstring states."""
        raise NotImplementedError

    @property
    def max_length(self) -> int | None:
        """The longest input this layer can take, or None."""
        return None

    def aux_loss(self) -> Tensor | None:
        """A penalty on the weights that joins the training loss once per update, or None."""
        return None

    def after_update(self, update: int, generator: torch.Generator) -> None:
        """Called after each update of the weights while training, the first being 1: for what is drawn anew.

        The generator is on the CPU, alike in all processes and in a run that is resumed; layers take turns with it.
        """

    def monitored(self) -> dict[str, float]:
        """Scalars worth plotting while training, by name (a mixture's weights, …)."""
        return {}

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """The outputs at all positions at once."""
        raise NotImplementedError

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        """The state before the first token of `batch` rows. CROSS projects its memory here, once."""
        return {"x": None, "memory": memory_BSM, "pad": pad_BS}

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        """The output at the next position, and the state after it.

        This default is right for every layer but slow: it keeps the prefix and runs the parallel form over it again.
        """
        x_BTD = x_B1D if state["x"] is None else torch.cat([state["x"], x_B1D], dim=1)
        y_BTD = self(x_BTD, state["memory"], pad_BS=state["pad"])
        return y_BTD[:, -1:], {**state, "x": x_BTD}

    def check_length(self, length: int) -> None:
        """Refuse, naming the limit and its key, an input longer than `max_length`."""
        if self.max_length is not None and length > self.max_length:
            raise UserError(
                f"An input of {length} positions is longer than attention "
                f"'{attentions.name_of(type(self.config))}' can take: max_length={self.max_length}.",
                f"Raise {self.slot}.max_length before training, or leave such sentences out.",
            )


class CarryingAttention(Attention):
    """An encoder's layer that hands a tensor up the stack, beside the positions (Luna's packed memory).

    Alone, or first of its kind, it starts from a tensor of its own. A stack calls `follow` on every later one, which
    then takes what the one before it handed on.
    """

    def follow(self, before: "CarryingAttention") -> None:
        """Give up the tensor of its own for what `before`, the last of these below it, hands on.

        Called once, before training, and only in the ENCODER role. Raises UserError if it cannot take that.
        """
        raise NotImplementedError

    def carry(
        self, x_BTD: Tensor, carried: Tensor | None, *, pad_BS: Tensor | None, positions_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The outputs at all positions, and what the next layer of this kind takes; `carried` is None for the first."""
        raise NotImplementedError


class SegmentAttention(Attention):
    """A causal layer that can go on where the segment before ended, and so see what stood in it.

    Segment by segment its outputs are those for all of the segments at once.
    """

    def read(self, x_BTD: Tensor, carried: State) -> tuple[Tensor, State]:
        """The outputs of a segment, and what the next one takes; `carried` is None for the first.

        No row is padded on the left. What a row hands on means nothing once it has padding on the right: it has ended.
        """
        raise NotImplementedError


_ROLE_WORDS = {
    Role.ENCODER: "an encoder's self-attention",
    Role.CAUSAL: "a decoder's self-attention (it has no causal form)",
    Role.CROSS: "cross-attention (it cannot read a memory)",
}


@dataclass(frozen=True)
class HeadedConfig(AttentionConfig):
    """What layers with heads share."""

    heads: int | None = None  # null: as many as the model says
    dropout: float = 0.0  # of the attention weights
    bias: bool = True  # of the projections


class HeadedAttention(Attention):
    """A layer that splits its width into heads; holds the projections' sizes and the reshaping."""

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.heads is None:
            raise UserError(f"Attention '{attentions.name_of(type(config))}' outside a model needs its heads set.")
        for key in ("heads", "max_length", "rank"):
            if getattr(config, key, 1) < 1:
                raise UserError(f"attention.{key}={getattr(config, key)} must be at least 1.")
        if dim % config.heads:
            raise UserError(f"A width of {dim} cannot be split into {config.heads} heads.", "Change dim or heads.")
        check_rate(config.dropout)
        self.heads = config.heads
        self.head_dim = dim // config.heads

    def projection(self, input_dim: int, output_dim: int | None = None, *, gain: float = 1.0) -> nn.Linear:
        """A linear map, to the layer's width if None, Xavier-uniform with `gain`, its bias (if any) zero."""
        linear = nn.Linear(input_dim, output_dim or self.dim, bias=self.config.bias)
        nn.init.xavier_uniform_(linear.weight, gain=gain)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        return linear

    def add_projections(self, *, kv_dim: int | None = None) -> None:
        """Make `query`, `key`, `value` (of width `kv_dim`, the layer's if None) and `out`: dot-product attention's.

        Keys and values are made from the memory in cross-attention. The gain is that of one matrix for all three.
        """
        read_dim = self.memory_dim if self.role is Role.CROSS else self.dim
        self.query = self.projection(self.dim, gain=1 / math.sqrt(2))
        self.key = self.projection(read_dim, kv_dim, gain=1 / math.sqrt(2))
        self.value = self.projection(read_dim, kv_dim, gain=1 / math.sqrt(2))
        self.out = self.projection(self.dim)

    def split(self, x_BTD: Tensor) -> Tensor:
        """x_BTD → x_BHTE; of fewer heads if x is narrower."""
        return x_BTD.view(*x_BTD.shape[:2], x_BTD.shape[2] // self.head_dim, self.head_dim).transpose(1, 2)

    def join(self, x_BHTE: Tensor) -> Tensor:
        """x_BHTE → x_BTD."""
        return x_BHTE.transpose(1, 2).flatten(2)
