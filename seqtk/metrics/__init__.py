"""Metrics. Importing a file registers the metrics in it."""

from seqtk.metrics import classification as classification
from seqtk.metrics import loss as loss
from seqtk.metrics import text as text
from seqtk.metrics.base import Evaluation, Metric, Score, metrics
from seqtk.metrics.outputs import ClassOutput, Output, Predictions

__all__ = ["ClassOutput", "Evaluation", "Metric", "Output", "Predictions", "Score", "metrics"]
