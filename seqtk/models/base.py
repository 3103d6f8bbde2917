"""What a model owes the criterions and the search."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from seqtk.attention import Attention, State
from seqtk.modules.head import LinearHead
from seqtk.registry import Registry


@dataclass(frozen=True)
class ModelConfig:
    """The base of every model's config."""


models: Registry["Model"] = Registry("model", ModelConfig)


class Model(nn.Module):
    """A network from a batch to features, and the head that turns features into losses or log-probabilities.

    Built as `models.build(config, source_vocabulary=…, target_vocabulary=…)` with the sizes that its task knows.
    """

    head: LinearHead
    max_source_length: int | None = None
    max_target_length: int | None = None

    def forward(self, batch: Any) -> Tensor:
        """features_BTD at every target position."""
        raise NotImplementedError

    def start(self, batch: Any) -> State:
        """The state before the first target token of each row of `batch`; what can be computed once is."""
        raise NotImplementedError

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        """features_B1D after reading one more token of each row, and the state after it."""
        raise NotImplementedError

    def attention_layers(self) -> Iterator[tuple[str, Attention]]:
        """Every attention layer with its dotted name."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Attention))
