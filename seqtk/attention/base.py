"""The interface of attention layers.

A layer supports up to three roles. It computes all positions in parallel, or one position at a time with equal results.

B batch, T query length, S key length, D width of the layer, M width of the memory.
"""

import enum
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from seqtk.config.registry import Registry
from seqtk.modules.linear import Linear
from seqtk.utils.errors import UserError

State = Any
"""A pytree whose leaves are tensors with the batch first, or None."""


class Role(enum.Flag):
    """The use of a layer: in an encoder, in a decoder, or as cross-attention. It is fixed at construction."""

    ENCODER = enum.auto()
    """Self-attention in both directions."""
    CAUSAL = enum.auto()
    """Self-attention in which position t attends to positions <= t. Later positions never change earlier outputs."""
    CROSS = enum.auto()
    """Cross-attention: queries attend to the memory (the encoder output), whose length may differ."""


class Scope(enum.Enum):
    """The later call that receives the state returned by `forward`: none, the next layer or the next segment."""

    NONE = enum.auto()
    """No call receives a state. `forward` returns None instead of a state."""
    LAYER = enum.auto()
    """The next layer of the encoder stack with this scope receives the state (Luna's packed memory)."""
    SEGMENT = enum.auto()
    """The same layer receives the state with the next segment of the text (Transformer-XL's memory)."""


@dataclass(frozen=True)
class StepState:
    """The state of a layer while it decodes one token at a time; a pytree node.

    All beams of a sentence have the same `static`, so beam search copies it only between rows of different sentences.
    """

    static: State = None
    """Leaves that no step changes, such as the keys and values of the memory."""
    dynamic: State = None
    """Leaves that each step replaces, such as the cache of self-attention."""

    def advance(self, dynamic: State) -> "StepState":
        """Returns the state after a step: `static` is unchanged, and `dynamic` is replaced."""
        return StepState(self.static, dynamic)


register_pytree_node(
    StepState,
    lambda state: ([state.static, state.dynamic], None),
    lambda children, _: StepState(*children),
    serialized_type_name="seqtk.attention.StepState",
)


@dataclass(frozen=True)
class AttentionConfig:
    """Base class of the configs of attention layers. A config field of this type accepts any attention layer."""


attentions: Registry["Attention"] = Registry(
    "attention", AttentionConfig, replaced={"after_update": "redraw_every and redraw"}
)


class Attention(nn.Module):
    """Base class of layers that combine positions: attention, and the layers that replace it.

    `pad_BS` is True at padding of the attended sequence, which is the memory in cross-attention and otherwise `x`.
    Padding is always on the right. Outputs at padding are finite and have no meaning.
    """

    roles: ClassVar[Role]
    scope: ClassVar[Scope] = Scope.NONE
    """The later call that receives the state of `forward`. LAYER is for encoders, SEGMENT for causal layers."""
    subquadratic: bool = False
    """True if time and memory grow more slowly than the square of the length."""
    slot: str = "attention"
    """The configuration key that selects this layer, such as `model.decoder.self_attention`. The model sets it."""

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        """Builds the layer.

        Args:
            config: The configuration of the layer.
            dim: Width of inputs and outputs.
            role: One of `roles`.
            memory_dim: Width of the memory in cross-attention. Defaults to `dim`.

        Raises:
            UserError: The layer does not support `role`.
        """
        super().__init__()
        if role not in self.roles:
            name = attentions.name_of(type(config))
            able = [other for other in attentions if role in attentions.class_of(attentions.config_type(other)).roles]
            raise UserError(
                f"Attention '{name}' cannot be used as {_ROLE_WORDS[role]}.",
                f"Use one of these: {', '.join(able)}.",
            )
        self.config, self.dim, self.role = config, dim, role
        self.memory_dim = memory_dim or dim

    @property
    def max_length(self) -> int | None:
        """The longest input that the layer accepts: the setting `max_length`, or None if there is no such setting."""
        longest: int | None = getattr(self.config, "max_length", None)
        return longest

    def aux_loss(self) -> Tensor | None:
        """Returns a penalty that is added to the loss per target, or None.

        Called after the forward pass of each micro-batch in training. The penalty of an update is the mean over its
        micro-batches, weighted by their targets. A penalty on activations must be returned only once: with LayerDrop,
        the next forward pass may skip the layer.
        """
        return None

    @property
    def redraw_every(self) -> int | None:
        """The interval in updates at which the trainer calls `redraw`. None: never."""
        return None

    def redraw(self, generator: torch.Generator) -> None:
        """Draws new random features, or updates other buffers that are not trained.

        The generator is on the CPU. It gives the same numbers in all processes and after a resume. All layers draw from
        it, one after another.
        """

    def joint_maps(self) -> list[tuple[Linear, ...]]:
        """Returns groups of linear maps with the same input. `forward` computes each group as one product."""
        return []

    def monitored(self) -> dict[str, float]:
        """Returns the scalars to log during training, as a dict from name to value."""
        return {}

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        """Computes all positions in parallel.

        Args:
            x_BTD: The inputs; queries in cross-attention.
            memory_BSM: The encoder output, in cross-attention only.
            pad_BS: True at padding.
            state: The state that the previous call (see `scope`) returned, or None in the first call.

        Returns:
            (y_BTD, state). The state is None if `scope` is NONE.
        """
        raise NotImplementedError

    def chain_after(self, previous: "Attention") -> None:
        """Connects a layer of scope LAYER to `previous`, whose state it receives. Called once, at construction.

        Raises:
            UserError: The layer cannot use the state of `previous`.
        """
        raise NotImplementedError

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        """Returns the state before the first token of `batch` rows. Cross-attention projects the memory here, once."""
        return StepState(static={"memory": memory_BSM, "pad": pad_BS})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        """Computes the next position.

        This default works for every layer, but is slow: it runs `forward` on the whole prefix.

        Returns:
            (y_B1D, state after the token).
        """
        x_BTD = x_B1D if state.dynamic is None else torch.cat([state.dynamic, x_B1D], dim=1)
        y_BTD, _ = self(x_BTD, state.static["memory"], pad_BS=state.static["pad"])
        return y_BTD[:, -1:], state.advance(x_BTD)

    def check_length(self, length: int) -> None:
        """Raises UserError if an input is longer than `max_length`."""
        if self.max_length is not None and length > self.max_length:
            raise UserError(
                f"An input of {length} positions exceeds max_length={self.max_length} of attention "
                f"'{attentions.name_of(type(self.config))}'.",
                f"Raise {self.slot}.max_length before training, or remove such examples.",
            )


_ROLE_WORDS = {
    Role.ENCODER: "an encoder's self-attention",
    Role.CAUSAL: "a decoder's self-attention (it has no causal form)",
    Role.CROSS: "cross-attention (it cannot read a memory)",
}
