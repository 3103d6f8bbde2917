"""The updates since the last log line: their sums, kept on the device, and the values of the log line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.checkpoint.run_state import TrainState
from seqtk.data.plan import Update
from seqtk.metrics import Evaluation, metrics
from seqtk.training.loss_scale import LossScale
from seqtk.training.speed import SPEED

OVERFLOWS = "overflows"
OF_WEIGHTS = "/weight"
"""Ends the name of the sum of a statistic's weights, next to the sum of the statistic."""


@dataclass(frozen=True)
class Reading:
    """What the host has read from the device."""

    sums: dict[str, float]
    """The sums of the interval by name."""
    more: list[float]
    """The elements of the other tensor that was read."""
    failed: tuple[TrainState, Update] | None
    """The first update that was not finite, with the state before it."""


class Interval:
    """Sums in float64 on the device, which the host reads for a log line, and what it does not know before.

    After an update that is not finite, all updates are skipped on the device until the host has read of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self.unread: list[tuple[TrainState, Update]] = []
        """The updates since the last reading, each with the state before it."""
        self._device = device
        self.forget_failure()

    def forget_failure(self) -> None:
        """Lets the updates that follow change the weights again."""
        self._finite = torch.ones((), dtype=torch.bool, device=self._device)
        self.has_failed = False
        """Whether the host knows already that the last update failed."""

    def judge(self, values: Tensor, loss_scale: LossScale | None) -> tuple[Tensor, Tensor]:
        """Returns whether the weights are changed by an update, and whether it is skipped to lower the loss scale.

        Args:
            values: The norm of its gradient, then its statistics.
            loss_scale: The loss scale of float16.
        """
        finite_N = values.isfinite()
        finite = finite_N.all()
        overflow = torch.zeros_like(finite)
        if loss_scale is not None:
            overflow = self._finite & loss_scale.is_overflow(loss=finite_N[1:].all(), gradient=finite_N[0])
        self._finite = self._finite & (finite | overflow)
        return self._finite & finite, overflow

    def add(
        self,
        names: Sequence[str],
        values: Tensor,
        *,
        weight: float,
        made: Tensor,
        overflow: Tensor,
        before: Mapping[str, float],
    ) -> None:
        """Adds the values of an update if it was `made`.

        Args:
            names: The names of the values: the norm of the gradient first, then the statistics.
            values: One scalar each.
            weight: The weight of the update.
            made, overflow: Whether the update changed the weights, and whether it was skipped to lower the loss scale.
            before: Sums of the interval from before these are the first.
        """
        if self._sums is None:
            self._names = (*names, "weight", "updates", OVERFLOWS)
            weights = before.get("weight", 0.0)
            start = [before.get(name, weights if name.endswith(OF_WEIGHTS) else 0.0) for name in self._names]
            self._sums = torch.tensor(start, dtype=torch.float64, device=self._device)
        counts = torch.stack([made.double() * weight, made.double(), overflow.double()])
        self._sums = self._sums + torch.cat([torch.where(made, values, 0.0), counts])

    def read(self, more: Tensor | None, *, before: Mapping[str, float]) -> Reading | None:
        """Reads the sums, and the elements of `more`, in one transfer. Returns None if there was no update.

        Args:
            more: Another tensor in float64, if any.
            before: The sums of the last reading.
        """
        if self._sums is None:
            return None
        read = self._sums if more is None else torch.cat([self._sums, more])
        values, count = read.tolist(), len(self._names)
        sums = dict(zip(self._names, values[:count], strict=True))
        finished = round(sum(sums[name] - before.get(name, 0.0) for name in ("updates", OVERFLOWS)))
        unread, self.unread = self.unread, []
        return Reading(sums, values[count:], unread[finished] if finished < len(unread) else None)


def interval_values(
    sums: Mapping[str, float], names: Sequence[str], *, unit: str, lr: float, loss_scale: float | None = None
) -> dict[str, float]:
    """Returns the metrics `names` of an interval with at least one update, and the other values of its log line.

    Args:
        sums: The sums that `Interval.read` returned, and the seconds.
        names: The metrics.
        unit: The noun for targets, in the plural.
        lr: The learning rate of the last update.
        loss_scale: The loss scale of float16.
    """
    weight, count = sums["weight"], sums["updates"]
    others = ("weight", "updates", "seconds", "norm", OVERFLOWS)
    named = [name for name in sorted(sums) if not name.startswith(SPEED)]
    own = [name for name in named if name not in others and not name.endswith(OF_WEIGHTS)]
    stats = {name: (sums[name], sums.get(f"{name}{OF_WEIGHTS}", weight)) for name in own}
    scores = metrics.compute(names, Evaluation(stats))
    return {
        **{name: score.value for name, score in scores.items()},
        "lr": lr,
        "gnorm": sums["norm"] / count,
        **({} if loss_scale is None else {"loss_scale": loss_scale, OVERFLOWS: sums[OVERFLOWS]}),
        f"{unit}_per_second": weight / max(sums["seconds"], 1e-9),
        f"{unit}_per_update": weight / count,
    }
