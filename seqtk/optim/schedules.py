"""Schedules of the learning rate, which are pure functions of the step: to resume a run, its step is enough.

`lr(step)` is the rate of the update that follows `step` finished updates: the first update of a run uses `lr(0)`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from seqtk.config.fields import setting
from seqtk.config.registry import Registry

WARMUP_HELP = "Updates in which the rate rises linearly to the optimizer's lr."


@dataclass(frozen=True)
class ScheduleConfig:
    """The settings of every schedule. All schedules start with a linear warm-up to the optimizer's `lr`."""

    warmup_updates: int = setting(0, at_least=0, help=WARMUP_HELP)
    warmup_init_lr: float = setting(0.0, at_least=0, help="The learning rate of the first update.")


schedules: Registry["Schedule"] = Registry("schedule", ScheduleConfig)


class Schedule(ABC):
    """Base class of schedules: a linear warm-up to the peak in `warmup_updates`, then `after_warmup`."""

    def __init__(self, config: Any, *, lr: float, max_steps: int | None = None) -> None:
        """Creates the schedule.

        Args:
            config: The schedule's config.
            lr: The learning rate at the peak.
            max_steps: The number of updates of the run, or None if the run has no max_updates.
        """
        self.config = config
        self.peak = lr
        self.max_steps = max_steps

    def lr(self, step: int) -> float:
        """Returns the learning rate of an update. `step` is the number of updates before it."""
        warmup: int = self.config.warmup_updates
        if step < warmup:
            start: float = self.config.warmup_init_lr
            return start + step * (self.peak - start) / warmup
        return self.after_warmup(step - warmup)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """Returns the learning rate of an update after the warm-up. `step` is the number of updates before it."""


@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """A constant rate after the warm-up."""


@schedules.register("constant", ConstantConfig)
class Constant(Schedule):
    """The learning rate is lr after the warm-up."""

    def after_warmup(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class InverseSqrtConfig(ScheduleConfig):
    """The Transformer's schedule, with the usual 4,000 updates of warm-up."""

    warmup_updates: int = setting(4000, at_least=0, help=WARMUP_HELP)


@schedules.register("inverse_sqrt", InverseSqrtConfig)
class InverseSqrt(Schedule):
    """lr · √(W / n) after n > W updates, W of them warm-up (Vaswani et al. 2017, section 5.3); without any, W is 1."""

    def after_warmup(self, step: int) -> float:
        warmup = max(1, self.config.warmup_updates)
        return self.peak * math.sqrt(warmup / max(warmup, self.config.warmup_updates + step))
