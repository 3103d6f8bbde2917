"""Sums over the updates since the last log line, kept on the device, and the values of the log line."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seqtk.metrics import Evaluation, metrics
from seqtk.training.speed import SPEED

OVERFLOWS = "overflows"
OF_WEIGHTS = "/weight"
"""Ends the name of the sum of a statistic's weights, next to the sum of the statistic."""


class IntervalSums:
    """Sums in float64 on the device. The host reads them only for a log line."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None

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
        if self.sums is None:
            self.names = (*names, "weight", "updates", OVERFLOWS)
            start = [
                before.get(name, before.get("weight", 0.0) if name.endswith(OF_WEIGHTS) else 0.0) for name in self.names
            ]
            self.sums = torch.tensor(start, dtype=torch.float64, device=self.device)
        counts = torch.stack([made.double() * weight, made.double(), overflow.double()])
        self.sums = self.sums + torch.cat([torch.where(made, values, 0.0), counts])

    def read(self, more: Tensor) -> tuple[dict[str, float], list[float]]:
        """Reads the sums by name, and the elements of `more`, in one transfer. Requires at least one update."""
        assert self.sums is not None
        values = torch.cat([self.sums, more]).tolist()
        return dict(zip(self.names, values[: len(self.names)], strict=True)), values[len(self.names) :]


def interval_values(
    sums: Mapping[str, float], names: Sequence[str], *, unit: str, lr: float, loss_scale: float | None = None
) -> dict[str, float]:
    """Returns the metrics `names` of an interval with at least one update, and the other values of its log line.

    Args:
        sums: The sums that `IntervalSums.read` returned, and the seconds.
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
