"""The outputs of a model on a split: texts with their references, or the predictions of a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Output:
    """The model's output for one example, as text."""

    index: int
    source: str
    output: str
    references: tuple[str, ...]
    """The texts to compare the output with, at least one."""


@dataclass(frozen=True)
class ClassOutput(Output):
    """The class that a model predicts for one example, as text and as an index."""

    target: int
    """The index of the true class, from 0."""
    log_probs: tuple[float, ...]
    """The log-probability of each class."""


class Predictions:
    """The predictions of a classifier for N examples and C classes, as arrays."""

    def __init__(self, outputs: Sequence[ClassOutput]) -> None:
        self.log_prob_NC = np.array([output.log_probs for output in outputs], dtype=np.float64)
        self.target_N = np.array([output.target for output in outputs], dtype=np.int64)
        self.predicted_N = self.log_prob_NC.argmax(1)

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return int(self.log_prob_NC.shape[1])

    def confusion(self) -> npt.NDArray[np.int64]:
        """Returns the confusion matrix count_CC: rows are true classes, columns are predictions."""
        code_N = self.target_N * self.classes + self.predicted_N
        return np.bincount(code_N, minlength=self.classes**2).reshape(self.classes, self.classes)
