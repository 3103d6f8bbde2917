"""Metrics. Importing a file registers the metrics in it."""

from seqtk.metrics import loss as loss
from seqtk.metrics import text as text
from seqtk.metrics.base import Evaluation, Metric, Output, Score, metrics

__all__ = ["Evaluation", "Metric", "Output", "Score", "metrics"]
