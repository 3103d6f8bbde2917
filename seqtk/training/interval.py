"""Accumulates statistics on the device between log lines, and computes the values of a log line."""

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
WEIGHT_SUFFIX = "/weight"
"""The suffix of the name of a sum of weights: for statistic NAME, this is NAME/weight."""


@dataclass(frozen=True)
class HostSums:
    """The sums of an interval, copied from the device to the host."""

    sums: dict[str, float]
    """Name → sum over the interval."""
    more: list[float]
    """The elements of `more`, the argument of `Interval.read`."""
    failed: tuple[TrainState, Update] | None
    """The first update that was not finite, with the state before this update. None: all updates were finite."""


class Interval:
    """Sums over the updates of a log interval, in float64 on the device. The host reads the sums only for log lines.

    If an update is not finite, the host notices this only when it reads the sums. Until then, the device skips all
    further updates.
    """

    def __init__(self, device: torch.device) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self.unread: list[tuple[TrainState, Update]] = []
        """(State before the update, update) for all updates since the sums were last read."""
        self._device = device
        self.forget_failure()

    def forget_failure(self) -> None:
        """Resets the failure, so that the next updates are not skipped."""
        self._finite = torch.ones((), dtype=torch.bool, device=self._device)
        self.has_failed = False
        """True if the host already knows that the last update failed."""

    def judge(self, values: Tensor, loss_scale: LossScale | None) -> tuple[Tensor, Tensor]:
        """Returns two boolean tensors: if an update is made, and if it is skipped because float16 overflows.

        Args:
            values: The norm of the gradient, then the statistics of the update.
            loss_scale: The loss scale of float16.
        """
        finite_N = values.isfinite()
        finite = finite_N.all()
        overflow = torch.zeros_like(finite)
        if loss_scale is not None:
            overflow = self._finite & loss_scale.is_overflow(loss=finite_N[1:].all(), gradient=finite_N[0])
        self._finite = self._finite & (finite | overflow)
        self._made = self._finite & finite
        return self._made, overflow

    @property
    def has_made_last(self) -> bool:
        """True if the last update changed the weights. Waits for the device."""
        return bool(self._made)

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
        """Adds the values of an update to the sums. The values of a skipped update are not added.

        Args:
            names: The names of the values: the norm of the gradient, then the statistics.
            values: One scalar for each name.
            weight: The weight of the update.
            made: True if the weights were changed; False for a skipped update.
            overflow: True if the update was skipped because float16 overflowed. Such updates are counted.
            before: The sums when they were last read. Only the first call uses them, to continue a resumed interval.
        """
        if self._sums is None:
            self._names = (*names, "weight", "updates", OVERFLOWS)
            weights = before.get("weight", 0.0)  # of every statistic, if an older version wrote `before`
            start = [
                before.get(name, weights if name.removesuffix(WEIGHT_SUFFIX) in before else 0.0) for name in self._names
            ]
            self._sums = torch.tensor(start, dtype=torch.float64, device=self._device)
        counts = torch.stack([made.double() * weight, made.double(), overflow.double()])
        self._sums = self._sums + torch.cat([torch.where(made, values, 0.0), counts])

    def read(self, more: Tensor | None, *, before: Mapping[str, float]) -> HostSums | None:
        """Reads the sums, and the elements of `more`, in one transfer. Returns None if there was no update.

        Args:
            more: An additional float64 tensor to read, or None.
            before: The sums when they were last read.
        """
        if self._sums is None:
            return None
        read = self._sums if more is None else torch.cat([self._sums, more])
        values, count = read.tolist(), len(self._names)
        sums = dict(zip(self._names, values[:count], strict=True))
        finished = round(sum(sums[name] - before.get(name, 0.0) for name in ("updates", OVERFLOWS)))
        unread, self.unread = self.unread, []
        return HostSums(sums, values[count:], unread[finished] if finished < len(unread) else None)


def interval_values(
    sums: Mapping[str, float], names: Sequence[str], *, unit: str, lr: float, loss_scale: float | None = None
) -> dict[str, float]:
    """Computes the values of a log line, for an interval with at least one update.

    Args:
        sums: The sums from `Interval.read`, and the sum `seconds`.
        names: The names of the metrics.
        unit: The plural noun for targets, such as "tokens".
        lr: The learning rate of the last update.
        loss_scale: The loss scale, or None if the precision is not fp16.
    """
    weight, count = sums["weight"], sums["updates"]
    others = ("weight", "updates", "seconds", "norm", OVERFLOWS)
    named = [name for name in sorted(sums) if not name.startswith(SPEED)]
    stat_names = [name for name in named if name not in others and not name.endswith(WEIGHT_SUFFIX)]
    stats = {name: (sums[name], sums.get(f"{name}{WEIGHT_SUFFIX}", weight)) for name in stat_names}
    scores = metrics.compute(names, Evaluation(stats))
    return {
        **{name: score.value for name, score in scores.items()},
        "lr": lr,
        "gnorm": sums["norm"] / count,
        **({} if loss_scale is None else {"loss_scale": loss_scale, OVERFLOWS: sums[OVERFLOWS]}),
        f"{unit}_per_second": weight / max(sums["seconds"], 1e-9),
        f"{unit}_per_update": weight / count,
    }
