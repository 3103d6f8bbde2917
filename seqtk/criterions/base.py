"""What a criterion gives back: sums and weights, so that every figure is a ratio of two sums."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from seqtk.attention import State
from seqtk.config.registry import Registry
from seqtk.models import Model


@dataclass(frozen=True)
class CriterionConfig:
    """The base of every criterion's config."""


criterions: Registry["Criterion"] = Registry("criterion", CriterionConfig)


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch: a *sum* over its targets, with how many they are."""

    total: Tensor
    weight: int
    sums: dict[str, Tensor]
    """Further sums over the same targets, without gradient, by the name they are reported under."""
    carried: State = None
    """What the model's rows hand to those that go on where they ended."""


class Criterion(nn.Module):
    """Turns a model's features into a loss."""

    sum_names: ClassVar[tuple[str, ...] | None] = None
    """The names of `Loss.sums`; None where they are not told beforehand."""

    def forward(self, model: Model, batch: Any, carried: State = None) -> Loss:
        """The loss of `batch` under `model`, whose rows were handed `carried`."""
        raise NotImplementedError
