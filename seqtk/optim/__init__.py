"""Optimizers, and schedules of their learning rate; both know only the registry."""

from seqtk.optim.optimizers import OptimizerConfig, optimizers
from seqtk.optim.schedules import Schedule, ScheduleConfig, schedules

__all__ = ["OptimizerConfig", "Schedule", "ScheduleConfig", "optimizers", "schedules"]
