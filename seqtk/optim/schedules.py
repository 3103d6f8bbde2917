"""Learning-rate schedules. A schedule is a pure function of the step, so checkpoints need not save its state.

`lr(step)` is the learning rate of the update after `step` updates: the first update of a run uses `lr(0)`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from seqtk.config.fields import setting
from seqtk.config.registry import Registry
from seqtk.utils.errors import UserError

WARMUP_HELP = "Number of warm-up updates, in which the rate rises linearly to the optimizer's lr."
PERIOD_HELP = "null: all updates after warm-up."


@dataclass(frozen=True)
class ScheduleConfig:
    """The settings that all schedules have. A schedule starts with a linear warm-up to the optimizer's `lr`."""

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
    """A constant rate, lr, after warm-up."""

    def after_warmup(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class InverseSqrtConfig(ScheduleConfig):
    """Inverse square root decay, the Transformer's schedule, with 4,000 warm-up updates."""

    warmup_updates: int = setting(4000, at_least=0, help=WARMUP_HELP)


@schedules.register("inverse_sqrt", InverseSqrtConfig)
class InverseSqrt(Schedule):
    """The rate lr · √(W / n) after n ≥ W = max(1, `warmup_updates`) updates (Vaswani et al. 2017, section 5.3)."""

    def after_warmup(self, step: int) -> float:
        warmup = max(1, self.config.warmup_updates)
        return self.peak * math.sqrt(warmup / max(warmup, self.config.warmup_updates + step))


class Decay(Schedule):
    """Base class of schedules with a period, which is `config.period` or, by default, all updates after warm-up."""

    end_key: ClassVar[str] = "end_lr"
    """The setting of the last rate, if there is one. It must not be higher than the peak."""

    def __init__(self, config: Any, *, lr: float, max_steps: int | None = None) -> None:
        super().__init__(config, lr=lr, max_steps=max_steps)
        if config.period is None and max_steps is None:
            raise UserError(
                f"schedule={schedules.name_of(type(config))} requires the length of the run.",
                "Set max_updates, or set schedule.period to the number of updates after warm-up.",
            )
        end, key = getattr(config, self.end_key, 0.0), f"schedule.{self.end_key}"
        if end > lr:
            raise UserError(f"{key}={end} is higher than the peak, optimizer.lr={lr}.", f"Lower {key}.")
        self.period = float(config.period or max(1, (max_steps or 0) - config.warmup_updates))


@dataclass(frozen=True)
class CosineConfig(ScheduleConfig):
    """Cosine annealing to `min_lr`, with warm restarts if the run is longer than `period`."""

    min_lr: float = setting(0.0, at_least=0, help="Learning rate at the end of the first cycle.")
    period: int | None = setting(None, at_least=1, help=f"Number of updates in the first cycle. {PERIOD_HELP}")
    t_mult: float = setting(1.0, at_least=1, help="Factor that multiplies the length of the cycle after each cycle.")
    shrink: float = setting(0.1, at_least=0, help="Factor that multiplies the learning rates after each cycle.")


@schedules.register("cosine", CosineConfig)
class Cosine(Decay):
    """The rate min + (lr − min) · (1 + cos(π t / T)) / 2 after t of the T updates of a cycle.

    This is SGDR (Loshchilov and Hutter 2017). Cycle i has T = period · t_mult^i updates, and lr and min are
    multiplied by shrink^i (fairseq).
    """

    end_key = "min_lr"

    def after_warmup(self, step: int) -> float:
        cycle, done, length = 0, float(step), self.period
        if self.config.t_mult == 1:
            cycle, done = int(step // length), step % length
        while done >= length:
            cycle, done, length = cycle + 1, done - length, length * self.config.t_mult
        low, high = (rate * self.config.shrink**cycle for rate in (self.config.min_lr, self.peak))
        return low + (high - low) * (1 + math.cos(math.pi * done / length)) / 2  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PolynomialConfig(ScheduleConfig):
    """Polynomial decay to `end_lr`, by default linear, followed by a constant rate."""

    end_lr: float = setting(0.0, at_least=0, help="Learning rate after `period`.")
    power: float = setting(1.0, above=0, help="Exponent of the decay. 1: linear.")
    period: int | None = setting(None, at_least=1, help=f"Number of updates from the peak to end_lr. {PERIOD_HELP}")


@schedules.register("polynomial", PolynomialConfig)
class Polynomial(Decay):
    """The rate end + (lr − end) · (1 − t / T)^power after t of the T updates after warm-up (fairseq)."""

    def after_warmup(self, step: int) -> float:
        remaining = max(0.0, 1 - step / self.period)
        end: float = self.config.end_lr
        return end + (self.peak - end) * remaining**self.config.power  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WSDConfig(ScheduleConfig):
    """Warm-up-stable-decay: a constant rate for most of the run, then a decay to `end_lr`."""

    end_lr: float = setting(0.0, at_least=0, help="Learning rate after `period`.")
    decay_share: float = setting(0.1, at_least=0, at_most=1, help="The rate decays in this last fraction of `period`.")
    power: float = setting(
        1.0, above=0, help="Exponent of the decay. 1: linear. 0.5: 1 − √t, which is steeper at the start."
    )
    period: int | None = setting(
        None, at_least=1, help=f"Number of updates from the end of warm-up to end_lr. {PERIOD_HELP}"
    )


@schedules.register("wsd", WSDConfig)
class WarmupStableDecay(Decay):
    """The constant rate lr, then a decay in the last `decay_share` of the T updates after warm-up.

    The decay begins after S = (1 − decay_share) T updates. After t updates, the decaying rate is
    end + (lr − end) · (1 − ((t − S) / (T − S))^power).

    Before the decay the rate does not depend on T, so a run can be resumed with a larger `max_updates` without any
    effect on earlier updates (Hu et al. 2024, MiniCPM, section 4). Hägele et al. 2024 recommend a power of 0.5.
    """

    def after_warmup(self, step: int) -> float:
        end: float = self.config.end_lr
        decay = self.config.decay_share * self.period
        decayed = step - (self.period - decay)
        if step >= self.period:
            return end
        if decayed <= 0:
            return self.peak
        return end + (self.peak - end) * (1 - (decayed / decay) ** self.config.power)  # type: ignore[no-any-return]
