"""Metrics of language models per unit of the original text, which are comparable between vocabularies."""

import math

from seqtk.metrics.base import TEXT_SIZE, Evaluation, Metric, Score, metrics
from seqtk.metrics.loss import LARGEST_EXPONENT


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
