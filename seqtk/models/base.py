"""The base class of models.

B batch, T target length, D width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from seqtk.attention import Attention, Role, State
from seqtk.config.registry import Registry
from seqtk.data.batch import Batch
from seqtk.modules.head import Head
from seqtk.utils.errors import UserError

Side = Literal["source", "target"]


@dataclass(frozen=True)
class ModelConfig:
    """Base class of the configs of models."""


models: Registry["Model"] = Registry(
    "model",
    ModelConfig,
    replaced={"check_carrying": "check_supports_recurrent_state", "layers_of_whole_rows": "length_limited_layers"},
)


class Model(nn.Module):
    """Base class of models. A model computes features, and its head computes losses or log-probabilities from them.

    A task builds its model with `build_model(config, BatchType, **sizes)`. The required `sizes` depend on the type of
    the batch:

    - TranslationBatch: `source_vocabulary` and `target_vocabulary`.
    - LanguageBatch and MaskedBatch: `vocabulary`.
    - ClassBatch: `vocabulary`, and `head`, a function that builds the head for features of a given width. With
      `input=values` also `values`, the number that each token represents.
    """

    reads: ClassVar[type[Batch]] = Batch
    """The type of the batches that the model reads."""
    head: Head
    max_source_length: int | None = None
    max_target_length: int | None = None

    def forward(self, batch: Any, state: State = None) -> tuple[Tensor, State]:
        """Computes the features of every target position.

        Args:
            batch: The batch of the model's task.
            state: The recurrent state that `forward` returned for the previous segments of these rows: a pytree whose
                leaves are None or tensors with the batch first. None for the first segments.

        Returns:
            (features_BTD, recurrent state for the next segments). The second is None if the model has no such state.
        """
        raise NotImplementedError

    def check_supports_recurrent_state(self) -> None:
        """Raises UserError if the configuration does not allow a recurrent state across segments."""

    def start(self, batch: Any) -> State:
        """Computes the encoder output, if any, and returns the decoding state before the first target token.

        The state is a pytree. Attention layers store their states in its `StepState` nodes, which separate leaves that
        never change from leaves that change with each step. All leaves outside these nodes may change with each step.
        """
        raise NotImplementedError

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads the next token of each row. Returns (features_B1D, state after the token)."""
        raise NotImplementedError

    def attention_layers(self) -> Iterator[tuple[str, Attention]]:
        """Yields (dotted name, layer) for all attention layers."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Attention))

    def length_limited_layers(self, side: Side) -> Iterable[Attention]:
        """Returns the attention layers whose `max_length` limits the source or the target (`side`)."""
        roles = Role.ENCODER | Role.CROSS if side == "source" else Role.CAUSAL
        return (layer for _, layer in self.attention_layers() if layer.role in roles)

    def separate_blocks(self) -> list[nn.Module]:
        """Returns the modules that `parallel=fsdp2` may shard separately.

        Each of these modules is called exactly once in a forward pass, and shares no weights with other modules.
        """
        stacks = (module for name, module in self.named_modules() if name.split(".")[-1] == "blocks")
        return [block for stack in stacks for block in stack.children()]

    def most_restrictive_layer(self, side: Side) -> Attention | None:
        """Returns the attention layer with the smallest `max_length` for the source or the target (`side`).

        Returns None if no layer has a maximum length.
        """
        limited = [layer for layer in self.length_limited_layers(side) if layer.max_length is not None]
        return min(limited, key=lambda layer: layer.max_length or 0, default=None)

    def length_limit(self, side: Side) -> int | None:
        """Returns the maximum length of a source or target, including EOS, or None if there is no limit."""
        layer = self.most_restrictive_layer(side)
        limits = [getattr(self, f"max_{side}_length"), layer and layer.max_length]
        return min((limit for limit in limits if limit is not None), default=None)


def build_model(config: ModelConfig, batch: type[Batch], **sizes: Any) -> Model:
    """Builds the model of `config` for a task with batches of type `batch`.

    Raises UserError if the model does not support batches of this type.
    """
    if not issubclass(batch, models.class_of(type(config)).reads):
        able = [name for name in models if issubclass(batch, models.class_of(models.config_type(name)).reads)]
        raise UserError(
            f"model={models.name_of(type(config))} does not support this task.",
            f"Use one of these: {', '.join(able)}.",
        )
    return models.build(config, **sizes)


def rows_of(state: State, rows: slice) -> State:
    """Returns the recurrent state of some rows."""
    return tree_map(lambda leaf: None if leaf is None else leaf[rows], state)
