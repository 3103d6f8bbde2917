"""Metrics computed from the losses of a criterion: loss, negative log-likelihood, perplexity, bits.

Metrics per unit of the original text are comparable between vocabularies.
"""

import math

import numpy as np

from seqtk.metrics.base import TEXT_SIZE, Evaluation, Metric, Score, metrics
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


class _PerUnitOfText(Metric):
    needs = ("nll", TEXT_SIZE)

    def bits_per(self, evaluation: Evaluation, units: int) -> Score:
        return Score(evaluation.stats["nll"][0] / math.log(2) / max(units, 1))


@metrics.register("bits_per_byte", unit="bits per byte", higher_is_better=False)
class BitsPerByte(_PerUnitOfText):
    """The negative log-likelihood of the text in bits, per byte of UTF-8. Comparable between vocabularies."""

    def compute(self, evaluation: Evaluation) -> Score:
        assert evaluation.text is not None
        return self.bits_per(evaluation, evaluation.text.bytes)


@metrics.register("bits_per_character", unit="bits per character", higher_is_better=False)
class BitsPerCharacter(_PerUnitOfText):
    """The negative log-likelihood of the text in bits, per Unicode code point. Comparable between vocabularies."""

    def compute(self, evaluation: Evaluation) -> Score:
        assert evaluation.text is not None
        return self.bits_per(evaluation, evaluation.text.characters)


@metrics.register("word_ppl", unit="perplexity per word", higher_is_better=False)
class WordPerplexity(_PerUnitOfText):
    """Perplexity per word of the text. The end of each line counts as a word, as in results on word corpora."""

    def compute(self, evaluation: Evaluation) -> Score:
        assert evaluation.text is not None
        words = max(evaluation.text.words + evaluation.text.lines, 1)
        return Score(math.exp(min(evaluation.stats["nll"][0] / words, LARGEST_EXPONENT)))
