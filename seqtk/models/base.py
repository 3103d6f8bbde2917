"""What a model owes the criterions and the search."""

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

    def forward(self, batch: Any) -> Tensor:
        """features_BTD at every target position."""
        raise NotImplementedError

    def read(self, batch: Any, carried: State) -> tuple[Tensor, State]:
        """features_BTD, and what each row hands to the one that goes on where it ended.

        `carried` is what the rows of this batch were handed so: a pytree whose leaves are tensors with the batch first,
        or None, which is also what the whole is for rows that begin. This default reads each row as one that begins.
        """
        return self(batch), None

    def check_carrying(self) -> None:
        """Raises UserError if rows of this model cannot go on where others ended."""

    def start(self, batch: Any) -> State:
        """The state before the first target token of each row of `batch`; what can be computed once is."""
        raise NotImplementedError

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        """features_B1D after reading one more token of each row, and the state after it."""
        raise NotImplementedError

    def attention_layers(self) -> Iterator[tuple[str, Attention]]:
        """Every attention layer with its dotted name."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Attention))

    def layers_of_whole_rows(self) -> Iterator[Attention]:
        """The attention layers whose input is as long as a source or target, which theirs may therefore limit."""
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
