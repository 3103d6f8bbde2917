"""Optimizers, one file a family, and schedules of their rate; all know only the registry."""

from seqtk.optim import adafactor as adafactor
from seqtk.optim import adam as adam
from seqtk.optim import muon as muon
from seqtk.optim import sgd as sgd
from seqtk.optim.base import OptimizerConfig, optimizers, set_rate
from seqtk.optim.schedules import Schedule, ScheduleConfig, schedules

__all__ = ["OptimizerConfig", "Schedule", "ScheduleConfig", "optimizers", "schedules", "set_rate"]
