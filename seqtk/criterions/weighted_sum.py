"""A weighted sum of criterions. The model computes its features once for all of them."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from seqtk.attention import State
from seqtk.config.fields import setting
from seqtk.criterions.base import Criterion, CriterionConfig, Loss, criterions, stat
from seqtk.models import Model
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class PartConfig:
    """One criterion of a sum."""

    criterion: CriterionConfig | None = setting(None, help="The criterion.")
    weight: float = setting(1.0, above=0, help="Weight of the loss of this criterion.")


@dataclass(frozen=True)
class SumConfig(CriterionConfig):
    """A weighted sum of criterions."""

    parts: tuple[PartConfig, ...] = setting(
        (), help="The criterions and their weights: [{criterion: cross_entropy, weight: 0.5}, …]."
    )


@criterions.register("sum", SumConfig)
class Sum(Criterion):
    """A weighted sum of criterions, Σ weight · loss. The model computes its features only once.

    The statistic `loss` is the sum. Each other statistic comes from the first part that returns it.

    Raises:
        UserError: If there are no parts, or a part has no criterion.
    """

    def __init__(self, config: SumConfig) -> None:
        super().__init__()
        if not config.parts:
            raise UserError(
                "criterion=sum has no parts.", "Set criterion.parts=[{criterion: cross_entropy, weight: 1}]."
            )
        kinds = [part.criterion for part in config.parts if part.criterion is not None]
        if len(kinds) < len(config.parts):
            raise UserError(
                "criterion.parts: a part has no criterion.",
                "Set the criterion of each part: [{criterion: cross_entropy, weight: 0.5}, …].",
            )
        self.parts = nn.ModuleList(map(criterions.build, kinds))
        self.weights = [part.weight for part in config.parts]

    def stats_of(self, model: Model) -> tuple[str, ...]:
        names = [name for part in self.parts for name in cast(Criterion, part).stats_of(model)]
        return tuple(dict.fromkeys(["loss", *names]))

    def check(self, model: Model) -> None:
        for part in self.parts:
            cast(Criterion, part).check(model)

    def forward(self, model: Model, batch: Any, state: State = None) -> Loss:
        shared = cast(Model, _FeaturesOnce(model))
        losses = [part(shared, batch, state) for part in self.parts]
        total = torch.stack([weight * loss.total for weight, loss in zip(self.weights, losses, strict=True)]).sum()
        stats = {name: value for loss in reversed(losses) for name, value in loss.stats.items()}
        weight = losses[0].weight
        return Loss(total, weight, {**stats, "loss": stat(total, weight)}, losses[0].state)


class _FeaturesOnce:
    """Wraps a model for one batch, so that its features are computed only at the first call."""

    def __init__(self, model: Model) -> None:
        self.head, self._model = model.head, model
        self._result: tuple[Tensor, State] | None = None

    def __call__(self, batch: Any, state: State = None) -> tuple[Tensor, State]:
        if self._result is None:
            self._result = self._model(batch, state)
        return self._result
