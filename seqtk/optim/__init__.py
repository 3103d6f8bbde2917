"""Optimizers, one file per family, and learning-rate schedules."""

from seqtk.optim import adafactor as adafactor
from seqtk.optim import adam as adam
from seqtk.optim import muon as muon
from seqtk.optim import sgd as sgd
from seqtk.optim.base import OptimizerConfig, can_skip, optimizers, set_rate
from seqtk.optim.scales import RateScale, freeze, rate_scales, scale_rates
from seqtk.optim.schedules import Schedule, ScheduleConfig, schedules

__all__ = [
    "OptimizerConfig",
    "RateScale",
    "Schedule",
    "ScheduleConfig",
    "can_skip",
    "freeze",
    "optimizers",
    "rate_scales",
    "scale_rates",
    "schedules",
    "set_rate",
]
