"""Several criterions of the same features, added up with weights."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from seqtk.attention import State
from seqtk.config.fields import setting
from seqtk.criterions.base import Criterion, CriterionConfig, Loss, criterions, stat
from seqtk.criterions.cross_entropy import CrossEntropyConfig
from seqtk.models import Model
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class PartConfig:
    """One criterion of a sum."""

    criterion: CriterionConfig = CrossEntropyConfig()
    weight: float = setting(1.0, above=0, help="The factor of its loss.")


@dataclass(frozen=True)
class SumConfig(CriterionConfig):
    """A sum of criterions, each with a weight."""

    parts: tuple[PartConfig, ...] = setting(
        (), help="The criterions and their weights: [{criterion: cross_entropy, weight: 0.5}, …]."
    )


@criterions.register("sum", SumConfig)
class Sum(Criterion):
    """Σ weight · loss. The model computes its features once for all parts.

    `loss` is the sum; every other statistic is that of the first part that has it.

    Raises:
        UserError: If there are no parts.
    """

    def __init__(self, config: SumConfig) -> None:
        super().__init__()
        if not config.parts:
            raise UserError(
                "criterion=sum has no parts.", "Set criterion.parts=[{criterion: cross_entropy, weight: 1}]."
            )
        self.parts = nn.ModuleList(criterions.build(part.criterion) for part in config.parts)
        self.weights = [part.weight for part in config.parts]

    def stats_of(self, model: Model) -> tuple[str, ...]:
        names = [name for part in self.parts for name in cast(Criterion, part).stats_of(model)]
        return tuple(dict.fromkeys(["loss", *names]))

    def forward(self, model: Model, batch: Any, state: State = None) -> Loss:
        shared = cast(Model, _FeaturesOnce(model))
        losses = [part(shared, batch, state) for part in self.parts]
        total = torch.stack([weight * loss.total for weight, loss in zip(self.weights, losses, strict=True)]).sum()
        stats = {name: value for loss in reversed(losses) for name, value in loss.stats.items()}
        weight = losses[0].weight
        return Loss(total, weight, {**stats, "loss": stat(total, weight)}, losses[0].state)


class _FeaturesOnce:
    """A model as criterions call it, which computes the features of its one batch once."""

    def __init__(self, model: Model) -> None:
        self.head, self._model = model.head, model
        self._result: tuple[Tensor, State] | None = None

    def __call__(self, batch: Any, state: State = None) -> tuple[Tensor, State]:
        if self._result is None:
            self._result = self._model(batch, state)
        return self._result
