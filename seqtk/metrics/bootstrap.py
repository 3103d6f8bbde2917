"""Confidence intervals of the metrics of classifiers, from bootstrap samples of the examples.

N examples, K bootstrap samples.
"""

import abc
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from seqtk.metrics.base import Evaluation, Metric
from seqtk.metrics.outputs import Predictions

Values: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.integer[Any]]


class ExampleMetric(Metric):
    """Base class of classifier metrics with a bootstrap confidence interval."""

    @abc.abstractmethod
    def values(self, predictions: Predictions, rows_KN: Rows) -> Values:
        """Returns value_K, the metric of each bootstrap sample. A row of `rows_KN` has the indices of its examples."""

    def interval(self, evaluation: Evaluation) -> tuple[float, float] | None:
        """Returns the 2.5 and 97.5 percentiles over bootstrap samples (Efron and Tibshirani 1993, section 13.3).

        The bootstrap samples depend only on the number of examples, so intervals are reproducible. Returns None if the
        model is not a classifier.
        """
        predictions, samples = evaluation.predictions, evaluation.resamples
        if predictions is None:
            return None
        examples = len(predictions.target_N)
        random = np.random.default_rng(1)
        chunk = max(1, MAX_INDICES // examples)
        chunks = [
            self.values(
                predictions, random.integers(examples, size=(min(chunk, samples - done), examples), dtype=np.int32)
            )
            for done in range(0, samples, chunk)
        ]
        low, high = np.percentile(np.concatenate(chunks), [2.5, 97.5])
        return float(low), float(high)


MAX_INDICES = 1 << 21
"""The maximum number of random indices that are generated at a time."""
