"""The base class of models."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from seqtk.attention import Attention, State
from seqtk.config.registry import Registry
from seqtk.modules.head import Head
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """The base of every model's config."""


models: Registry["Model"] = Registry("model", ModelConfig)


class Model(nn.Module):
    """A network from a batch to features, and the head that turns features into losses or log-probabilities.

    Built by `build_model` with the sizes that its task knows: `source_vocabulary` and `target_vocabulary`, or, for a
    language model, `vocabulary`.
    """

    head: Head
    max_source_length: int | None = None
    max_target_length: int | None = None

    def forward(self, batch: Any, state: State = None) -> tuple[Tensor, State]:
        """Computes the features of every target position.

        Args:
            batch: The batch of the model's task.
            state: The recurrent state that the previous segments of these rows returned: a pytree whose leaves are
                None or tensors with the batch first. None: the rows are first segments.

        Returns:
            (features_BTD, recurrent state for the next segments). The state is None for models without one.
        """
        raise NotImplementedError

    def check_supports_recurrent_state(self) -> None:
        """Raises UserError if the configuration does not allow a state to pass from segment to segment."""

    def start(self, batch: Any) -> State:
        """The decoding state before the first target token; computes the encoder output once.

        Attention layers keep their part in `StepState` nodes; every other leaf may change with each step.
        """
        raise NotImplementedError

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads one more token of each row. Returns (features_B1D, state after the token)."""
        raise NotImplementedError

    def attention_layers(self) -> Iterator[tuple[str, Attention]]:
        """All attention layers with their dotted names."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Attention))

    def length_limited_layers(self) -> Iterator[Attention]:
        """The attention layers whose `max_length` limits the source or the target."""
        return (layer for _, layer in self.attention_layers())


def build_model(config: ModelConfig, **sizes: int) -> Model:
    """The model of `config` for a task that knows these sizes. Raises UserError if it is for another kind of task."""

    def wants(kind: type[Model]) -> set[str]:
        return set(inspect.signature(kind).parameters) - {"config"}

    if wants(models.class_of(type(config))) != set(sizes):
        able = [name for name in models if wants(models.class_of(models.config_type(name))) == set(sizes)]
        raise UserError(
            f"The model '{models.name_of(type(config))}' is not for this task.",
            f"These are: {', '.join(able)}.",
        )
    return models.build(config, **sizes)
