"""A schedule: the rate falls linearly to 0 in each period, then jumps back to its peak."""

from dataclasses import dataclass

from seqtk.config.fields import setting
from seqtk.optim.schedules import Schedule, ScheduleConfig, schedules


@dataclass(frozen=True)
class SawtoothConfig(ScheduleConfig):
    """Config of the schedule `sawtooth`."""

    period: int = setting(100, at_least=1, help="The updates of one tooth.")


@schedules.register("sawtooth", SawtoothConfig)
class Sawtooth(Schedule):
    """Computes the rate peak · (1 - (step mod period) / period)."""

    def after_warmup(self, step: int) -> float:
        return self.peak * (1 - step % self.config.period / self.config.period)
