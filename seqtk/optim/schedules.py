"""Learning rates: pure functions of the step, so that a run resumes at the right one by knowing its step alone.

`lr(step)` is the rate that the update made after `step` finished updates uses: the first of a run uses `lr(0)`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from seqtk.config.registry import Registry
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    """Every schedule starts with a linear rise to the optimizer's `lr`."""

    warmup_updates: int = 0  # updates in which the rate rises linearly to the optimizer's lr
    warmup_init_lr: float = 0.0  # where it rises from


schedules: Registry["Schedule"] = Registry("schedule", ScheduleConfig)


class Schedule(ABC):
    """The rate of each update: linear from `warmup_init_lr` to the peak in `warmup_updates`, then `after_warmup`."""

    def __init__(self, config: Any, *, lr: float, max_steps: int | None = None) -> None:
        """`lr` is the peak; `max_steps` how many updates the run makes, None where something else ends it."""
        if config.warmup_updates < 0:
            raise UserError(f"schedule.warmup_updates={config.warmup_updates} must not be negative.")
        self.config = config
        self.peak = lr
        self.max_steps = max_steps

    def lr(self, step: int) -> float:
        """The rate of the update that follows `step` finished ones."""
        warmup: int = self.config.warmup_updates
        if step < warmup:
            start: float = self.config.warmup_init_lr
            return start + step * (self.peak - start) / warmup
        return self.after_warmup(step - warmup)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """The rate of the update that follows `step` finished ones after the warm-up."""

    def decay_updates(self) -> float:
        """The configured `period`, or else all that `max_steps` leaves after the warm-up."""
        if self.config.period is None:
            if self.max_steps is None:
                raise UserError(
                    f"The schedule '{schedules.name_of(type(self.config))}' does not know when the training ends.",
                    "Set schedule.period, or the number of updates to train for.",
                )
            warmup: int = self.config.warmup_updates
            return max(1, self.max_steps - warmup)
        if self.config.period < 1:
            raise UserError(f"schedule.period={self.config.period} must be at least 1, or null for the whole run.")
        return float(self.config.period)


@dataclass(frozen=True)
class ConstantConfig(ScheduleConfig):
    """The same rate for ever, once warm."""


@schedules.register("constant", ConstantConfig)
class Constant(Schedule):
    """lr."""

    def after_warmup(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class InverseSqrtConfig(ScheduleConfig):
    """The Transformer's schedule, with the usual 4,000 updates of warm-up."""

    warmup_updates: int = 4000  # updates in which the rate rises linearly to the optimizer's lr


@schedules.register("inverse_sqrt", InverseSqrtConfig)
class InverseSqrt(Schedule):
    """lr · √(W / n) after n > W updates, W of them warm-up (Vaswani et al. 2017, section 5.3); without any, W is 1."""

    def after_warmup(self, step: int) -> float:
        warmup = max(1, self.config.warmup_updates)
        return self.peak * math.sqrt(warmup / max(warmup, self.config.warmup_updates + step))


@dataclass(frozen=True)
class CosineConfig(ScheduleConfig):
    """Half a cosine down to `min_lr`, again and again where the run is longer than `period`."""

    min_lr: float = 0.0  # where the first cycle ends
    period: int | None = None  # updates in the first cycle; null: all that follow the warm-up
    t_mult: float = 1.0  # each cycle is so many times as long as the one before
    shrink: float = 0.1  # and its highest and lowest rate so many times as high


@schedules.register("cosine", CosineConfig)
class Cosine(Schedule):
    """min + (lr − min) · (1 + cos(π t / T)) / 2, t updates into a cycle of T (Loshchilov and Hutter 2017, SGDR).

    Cycle i has T = period · t_mult^i, and both of its rates are times shrink^i (fairseq).
    """

    def __init__(self, config: CosineConfig, *, lr: float, max_steps: int | None = None) -> None:
        super().__init__(config, lr=lr, max_steps=max_steps)
        if config.min_lr > lr:
            raise UserError(f"schedule.min_lr={config.min_lr} is higher than the peak, optimizer.lr={lr}.")
        if config.t_mult < 1:
            raise UserError(f"schedule.t_mult={config.t_mult} must be at least 1.")
        self.period = self.decay_updates()

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
    """A straight line (or another power) down to `end_lr`, which then stays."""

    end_lr: float = 0.0  # the rate after `period`
    power: float = 1.0  # 1: a straight line
    period: int | None = None  # updates from the peak to end_lr; null: all that follow the warm-up


@schedules.register("polynomial", PolynomialConfig)
class Polynomial(Schedule):
    """end + (lr − end) · (1 − t / T)^power, t updates after the warm-up, T of them till the end (fairseq)."""

    def __init__(self, config: PolynomialConfig, *, lr: float, max_steps: int | None = None) -> None:
        super().__init__(config, lr=lr, max_steps=max_steps)
        self.period = self.decay_updates()

    def after_warmup(self, step: int) -> float:
        remaining = max(0.0, 1 - step / self.period)
        end: float = self.config.end_lr
        return end + (self.peak - end) * remaining**self.config.power  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WSDConfig(ScheduleConfig):
    """Warm-up, stable, decay: the peak for most of the run, then a fall to `end_lr`, which then stays."""

    end_lr: float = 0.0  # the rate after `period`
    decay_share: float = 0.1  # the last part of `period`, in which the rate falls
    power: float = 1.0  # 1: a straight line; 0.5: steeper at first, 1 − √t
    period: int | None = None  # updates from the end of the warm-up to end_lr; null: all that follow the warm-up


@schedules.register("wsd", WSDConfig)
class WarmupStableDecay(Schedule):
    """lr, then end + (lr − end) · (1 − ((t − S) / (T − S))^power) from update S = (1 − decay_share) T to T.

    Until the fall the rate does not depend on T, so that a run may go on with a larger `max_updates` as if it had been
    planned (Hu et al. 2024, MiniCPM, section 4). A power of 0.5 is the best fall of Hägele et al. 2024.
    """

    def __init__(self, config: WSDConfig, *, lr: float, max_steps: int | None = None) -> None:
        super().__init__(config, lr=lr, max_steps=max_steps)
        if config.end_lr > lr:
            raise UserError(f"schedule.end_lr={config.end_lr} is higher than the peak, optimizer.lr={lr}.")
        if not 0 <= config.decay_share <= 1:
            raise UserError(f"schedule.decay_share={config.decay_share} must be from 0 to 1, a part of the run.")
        if not config.power > 0:
            raise UserError(f"schedule.power={config.power} must be above 0.")
        self.period = self.decay_updates()

    def after_warmup(self, step: int) -> float:
        end: float = self.config.end_lr
        falling = self.config.decay_share * self.period
        fallen = step - (self.period - falling)
        if step >= self.period:
            return end
        if fallen <= 0:
            return self.peak
        return end + (self.peak - end) * (1 - (fallen / falling) ** self.config.power)  # type: ignore[no-any-return]
