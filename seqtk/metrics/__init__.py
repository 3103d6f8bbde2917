"""Metrics: one import line for each file, which registers what it defines."""

from seqtk.metrics import loss as loss
from seqtk.metrics import text as text
from seqtk.metrics.base import Evaluation, Metric, Output, Score, metrics

__all__ = ["Evaluation", "Metric", "Output", "Score", "metrics"]
