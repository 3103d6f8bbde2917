"""The base class of criterions. A criterion returns sums and weights; metrics are computed from their ratios."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seqtk.attention import State
from seqtk.config.registry import Registry
from seqtk.models import Model


@dataclass(frozen=True)
class CriterionConfig:
    """Base class of the configs of criterions."""


criterions: Registry["Criterion"] = Registry("criterion", CriterionConfig, replaced={"sum_names": "stat_names"})


Stats = dict[str, tuple[Tensor, Tensor]]
"""Name → (sum, weight): two scalar tensors without gradient, on the model's device."""


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch."""

    total: Tensor
    """The loss to minimize, *summed* over the targets."""
    weight: float
    """The number of targets, or the sum of their weights. The loss of an update is the sum of `total` over its
    micro-batches divided by the sum of `weight`."""
    stats: Stats
    """The statistics from which metrics are computed."""
    state: State
    """The recurrent state that the model returned. The next segment of each row starts from it."""


class Criterion(nn.Module):
    """Computes a loss from a model and a batch."""

    stat_names: ClassVar[tuple[str, ...]] = ("loss",)
    """The names in `Loss.stats`."""

    def stats_of(self, model: Model) -> tuple[str, ...]:
        """Returns the names in `Loss.stats` for this model. Override it if they depend on the model's head."""
        return self.stat_names

    def check(self, model: Model) -> None:
        """Raises UserError if the settings of this criterion do not suit the model. Called before training."""

    def forward(self, model: Model, batch: Any, state: State = None) -> Loss:
        """Returns the loss of `batch`.

        Args:
            model: The model. Only `model(...)` and `model.head(...)` are called.
            batch: A batch from the task's `collate`.
            state: The recurrent state before the batch. None: the initial state.
        """
        raise NotImplementedError


def stat(total: Tensor, weight: float | Tensor) -> tuple[Tensor, Tensor]:
    """Returns an entry of `Loss.stats`: the detached sum and its weight. In compiled code `weight` is a tensor."""
    total = total.detach()
    if isinstance(weight, Tensor):
        return total, weight.double()
    # float32 represents integers exactly only up to 2^24 tokens, which a few updates can exceed.
    return total, torch.full((), float(weight), dtype=torch.float64, device=total.device)
