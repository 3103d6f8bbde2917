"""Learning-rate schedules. They are pure functions of the step, so they have no state to save in checkpoints.

`lr(step)` is the learning rate of the update after `step` updates: the first update of a run uses `lr(0)`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from seqtk.config.fields import setting
from seqtk.config.registry import Registry

WARMUP_HELP = "Number of warm-up updates, in which the rate rises linearly to the optimizer's lr."


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of all schedules, which start with a linear warm-up to the optimizer's `lr`."""

    warmup_updates: int = setting(0, at_least=0, help=WARMUP_HELP)
    warmup_init_lr: float = setting(0.0, at_least=0, help="Learning rate of the first warm-up update.")


schedules: Registry["Schedule"] = Registry("schedule", ScheduleConfig)


class Schedule(ABC):
    """Base class of schedules: a linear warm-up of `warmup_updates` updates, then `after_warmup`."""

    def __init__(self, config: Any, *, lr: float, max_steps: int | None = None) -> None:
        """Creates the schedule.

        Args:
            config: The schedule's config.
            lr: The peak learning rate.
            max_steps: The number of updates of the run, or None if the run has no max_updates.
        """
        self.config = config
        self.peak = lr
        self.max_steps = max_steps

    def lr(self, step: int) -> float:
        """Returns the learning rate of the update after `step` updates."""
        warmup: int = self.config.warmup_updates
        if step < warmup:
            start: float = self.config.warmup_init_lr
            return start + step * (self.peak - start) / warmup
        return self.after_warmup(step - warmup)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """Returns the learning rate of the update after `step` updates, not counting warm-up."""


@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """A constant learning rate after warm-up."""


@schedules.register("constant", ConstantConfig)
class Constant(Schedule):
    """The constant rate lr after warm-up."""

    def after_warmup(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class InverseSqrtConfig(ScheduleConfig):
    """Inverse square root decay, the Transformer's schedule, with 4,000 warm-up updates."""

    warmup_updates: int = setting(4000, at_least=0, help=WARMUP_HELP)


@schedules.register("inverse_sqrt", InverseSqrtConfig)
class InverseSqrt(Schedule):
    """lr · √(W / n) after n ≥ W updates, where W is `warmup_updates`, at least 1 (Vaswani et al. 2017, section 5.3)."""

    def after_warmup(self, step: int) -> float:
        warmup = max(1, self.config.warmup_updates)
        return self.peak * math.sqrt(warmup / max(warmup, self.config.warmup_updates + step))
