"""Metrics of predictions: accuracy, and for classifiers macro-averaged F1 and the expected calibration error.

N examples, K bootstrap samples, C classes, B bins.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqtk.metrics.base import PREDICTIONS, Evaluation, Score, metrics
from seqtk.metrics.bootstrap import ExampleMetric, Rows, Values
from seqtk.metrics.outputs import Predictions

BINS = 15


@metrics.register("accuracy", unit="%", higher_is_better=True)
class Accuracy(ExampleMetric):
    """The percentage of targets that have the highest probability of all classes or tokens."""

    needs = ("correct",)

    def compute(self, evaluation: Evaluation) -> Score:
        return Score(100 * evaluation.mean("correct"))

    def values(self, predictions: Predictions, rows_KN: Rows) -> Values:
        correct_N = predictions.predicted_N == predictions.target_N
        return np.asarray(100 * correct_N[rows_KN].mean(1))


class _PredictionMetric(ExampleMetric):
    needs = (PREDICTIONS,)

    def compute(self, evaluation: Evaluation) -> Score:
        assert evaluation.predictions is not None
        rows_1N = np.arange(len(evaluation.predictions.target_N))[None]
        return Score(float(self.values(evaluation.predictions, rows_1N)[0]))


@metrics.register("macro_f1", unit="%", higher_is_better=True)
class MacroF1(_PredictionMetric):
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN). Skips a class without any example or prediction."""

    def values(self, predictions: Predictions, rows_KN: Rows) -> Values:
        classes = predictions.classes
        target_KN, predicted_KN = predictions.target_N[rows_KN], predictions.predicted_N[rows_KN]
        hits_KC = _counts(target_KN, classes, weights_KN=(target_KN == predicted_KN).astype(np.float64))
        sizes_KC = _counts(target_KN, classes) + _counts(predicted_KN, classes)
        f1_KC = 2 * hits_KC / np.maximum(sizes_KC, 1)
        return np.asarray(100 * f1_KC.sum(1) / (sizes_KC > 0).sum(1))


@metrics.register("ece", unit="%", higher_is_better=False)
class ExpectedCalibrationError(_PredictionMetric):
    """Expected calibration error: the mean difference between accuracy and confidence, in 15 bins of equal width.

    The confidence is the probability of the predicted class. Each bin is weighted by its number of examples (Guo et al.
    2017, arXiv 1706.04599, section 2, equation 3).
    """

    def values(self, predictions: Predictions, rows_KN: Rows) -> Values:
        confidence_N = np.exp(predictions.log_prob_NC.max(1))
        bin_N = np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
        gap_N = (predictions.predicted_N == predictions.target_N) - confidence_N
        gap_KB = _counts(bin_N[rows_KN], BINS, weights_KN=gap_N[rows_KN])
        return np.asarray(100 * np.abs(gap_KB).sum(1) / rows_KN.shape[1])


def _counts(code_KN: Rows, codes: int, *, weights_KN: Values | None = None) -> npt.NDArray[np.float64]:
    """Counts each integer below `codes` in each row, with weights if given. Returns an array of shape [K, codes]."""
    offset_K1 = np.arange(len(code_KN))[:, None] * codes
    weights = None if weights_KN is None else weights_KN.ravel()
    counts = np.bincount((code_KN + offset_K1).ravel(), weights=weights, minlength=len(code_KN) * codes)
    return counts.reshape(len(code_KN), codes).astype(np.float64)


@dataclass(frozen=True)
class ClassFigures:
    """Precision, recall, F1 and the number of examples of one class."""

    name: str
    precision: float
    recall: float
    f1: float
    examples: int


def per_class(count_CC: npt.NDArray[np.int64], classes: list[str]) -> list[ClassFigures]:
    """Returns precision, recall and F1 of each class in %, from a confusion matrix. 0 / 0 is 0."""
    hits_C, predicted_C, examples_C = np.diagonal(count_CC), count_CC.sum(0), count_CC.sum(1)
    precision_C = 100 * hits_C / np.maximum(predicted_C, 1)
    recall_C = 100 * hits_C / np.maximum(examples_C, 1)
    f1_C = 200 * hits_C / np.maximum(predicted_C + examples_C, 1)
    columns = (precision_C.tolist(), recall_C.tolist(), f1_C.tolist(), examples_C.tolist())
    return [ClassFigures(name, *figures) for name, *figures in zip(classes, *columns, strict=True)]
