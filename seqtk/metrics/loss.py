"""Metrics computed from the losses of a criterion: loss, negative log-likelihood, perplexity."""

import math

import numpy as np

from seqtk.metrics.base import Evaluation, Metric, Score, metrics
from seqtk.metrics.bootstrap import ExampleMetric, Rows, Values
from seqtk.metrics.outputs import Predictions

LARGEST_EXPONENT = 700.0
"""Perplexities are capped at exp(700), since a larger power of e overflows float64."""


@metrics.register("loss", unit="per target", higher_is_better=False)
class MeanLoss(Metric):
    """The training loss per target, without the auxiliary losses of attention layers."""

    needs = ("loss",)

    def compute(self, evaluation: Evaluation) -> Score:
        return Score(evaluation.mean("loss"))


@metrics.register("nll", unit="nats per target", higher_is_better=False)
class NegativeLogLikelihood(ExampleMetric):
    """The mean negative log-likelihood of the targets, in nats."""

    needs = ("nll",)

    def compute(self, evaluation: Evaluation) -> Score:
        return Score(evaluation.mean("nll"))

    def values(self, predictions: Predictions, rows_KN: Rows) -> Values:
        nll_N = -predictions.log_prob_NC[np.arange(len(predictions.target_N)), predictions.target_N]
        return np.asarray(nll_N[rows_KN].mean(1))


@metrics.register("ppl", unit="perplexity per target", higher_is_better=False)
class Perplexity(Metric):
    """Perplexity: exp(nll)."""

    needs = ("nll",)

    def compute(self, evaluation: Evaluation) -> Score:
        return Score(math.exp(min(evaluation.mean("nll"), LARGEST_EXPONENT)))


@metrics.register("bits_per_token", unit="bits per token", higher_is_better=False)
class BitsPerToken(Metric):
    """The mean negative log-likelihood of the targets, in bits."""

    needs = ("nll",)

    def compute(self, evaluation: Evaluation) -> Score:
        return Score(evaluation.mean("nll") / math.log(2))
