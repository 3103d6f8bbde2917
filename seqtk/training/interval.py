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
    loss_scale: dict[str, float]
    """The state of the loss scale; empty without a loss scale."""
    failed: tuple[TrainState, Update] | None
    """The first update that was not finite, with the state before this update. None: all updates were finite."""


class Interval:
    """Sums over the updates of a log interval, in float64 on the device. The host reads the sums only for log lines.

    If an update is not finite, the host notices this only when it reads the sums. Until then, the device skips all
    further updates.

    Args:
        device: The device of the sums.
        loss_scale: The loss scale of float16.
        before: The sums of an earlier session, which a resumed interval continues.
    """

    def __init__(
        self, device: torch.device, *, loss_scale: LossScale | None = None, before: Mapping[str, float] | None = None
    ) -> None:
        self._device, self._loss_scale = device, loss_scale
        self._read = before or {}
        """The sums when they were last read."""
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self.unread: list[tuple[TrainState, Update]] = []
        """(State before the update, update) for all updates since the sums were last read."""
        self.forget_failure()

    def forget_failure(self) -> None:
        """Resets the failure, so that the next updates are not skipped."""
        self._finite = torch.ones((), dtype=torch.bool, device=self._device)
        self.has_failed = False
        """True if the host already knows that the last update failed."""

    def judge(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two boolean tensors: if an update is made, and if it is skipped because float16 overflows.

        `values` are the norm of the gradient, then the statistics of the update.
        """
        finite_N = values.isfinite()
        finite = finite_N.all()
        self._overflow = torch.zeros_like(finite)
        if self._loss_scale is not None:
            is_overflow = self._loss_scale.is_overflow(loss=finite_N[1:].all(), gradient=finite_N[0])
            self._overflow = self._finite & is_overflow
        self._finite = self._finite & (finite | self._overflow)
        self._made = self._finite & finite
        return self._made, self._overflow

    @property
    def has_made_last(self) -> bool:
        """True if the last update changed the weights. Waits for the device."""
        return bool(self._made)

    def add(self, names: Sequence[str], values: Tensor, *, weight: float) -> None:
        """Adds the values that `judge` received last to the sums. Does not add the values of a skipped update.

        Args:
            names: The names of the values: the norm of the gradient, then the statistics.
            values: One scalar for each name.
            weight: The weight of the update.
        """
        if self._sums is None:
            before, self._names = self._read, (*names, "weight", "updates", OVERFLOWS)
            weights = before.get("weight", 0.0)  # of every statistic, if an older version wrote `before`
            start = [
                before.get(name, weights if name.removesuffix(WEIGHT_SUFFIX) in before else 0.0) for name in self._names
            ]
            self._sums = torch.tensor(start, dtype=torch.float64, device=self._device)
        made = self._made.double()
        counts = torch.stack([made * weight, made, self._overflow.double()])
        self._sums = self._sums + torch.cat([torch.where(self._made, values, 0.0), counts])

    def read(self) -> HostSums | None:
        """Reads the sums and the state of the loss scale in one transfer. Returns None if there was no update."""
        if self._sums is None:
            return None
        scale, count = self._loss_scale, len(self._names)
        values = (self._sums if scale is None else torch.cat([self._sums, scale.values])).tolist()
        sums = dict(zip(self._names, values[:count], strict=True))
        finished = round(sum(sums[name] - self._read.get(name, 0.0) for name in ("updates", OVERFLOWS)))
        unread, self.unread, self._read = self.unread, [], sums
        failed = unread[finished] if finished < len(unread) else None
        return HostSums(sums, {} if scale is None else scale.state(values[count:]), failed)


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
