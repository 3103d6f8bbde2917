"""The base of criterions. A criterion returns sums and weights, so that every metric is a ratio of two sums."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqtk.attention import State
from seqtk.config.registry import Registry
from seqtk.models import Model


@dataclass(frozen=True)
class CriterionConfig:
    """The base of every criterion's config."""


criterions: Registry["Criterion"] = Registry("criterion", CriterionConfig)


Stats = dict[str, tuple[Tensor, Tensor]]
"""Name → (sum, weight): two scalar tensors without gradient, on the model's device."""


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch."""

    total: Tensor
    """What is minimised: a *sum* over the targets."""
    weight: float
    """The number of targets, or the sum of their weights; `total` is divided by it once all micro-batches of an update
    are added up."""
    stats: Stats
    """Sums that metrics are computed from, each with its weight."""
    state: State = None
    """The recurrent state after the batch, for rows that continue these."""


class Criterion(nn.Module):
    """Computes a loss from a model and a batch."""

    stat_names: ClassVar[tuple[str, ...]] = ("loss",)
    """The names in `Loss.stats`."""

    def stats_of(self, model: Model) -> tuple[str, ...]:
        """Returns the names in `Loss.stats` with this model, for a criterion whose statistics depend on the head."""
        return self.stat_names

    def forward(self, model: Model, batch: Any, state: State = None) -> Loss:
        """Returns the loss of `batch`.

        Args:
            model: The model, called as `model(...)` and `model.head(...)` only.
            batch: What the task's `collate` returns.
            state: The recurrent state of the rows that these continue; None at the start.
        """
        raise NotImplementedError


def stat(total: Tensor, weight: float | Tensor) -> tuple[Tensor, Tensor]:
    """Returns an entry of `Loss.stats`: a sum, detached, with its weight, which is a tensor in compiled code."""
    total = total.detach()
    if isinstance(weight, Tensor):
        return total, weight.double()
    # A float32 counts exactly up to 2^24 only, which the tokens of a few updates exceed.
    return total, torch.full((), float(weight), dtype=torch.float64, device=total.device)
