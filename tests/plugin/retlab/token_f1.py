"""A metric: the mean F1 of the words of each output and its best reference."""

from collections import Counter

from seqtk.metrics import Evaluation, Metric, Score, metrics


@metrics.register("token_f1", unit="%", higher_is_better=True)
class TokenF1(Metric):
    """Compares the words of two texts, as in the evaluation of SQuAD."""

    needs = ("outputs",)

    def compute(self, evaluation: Evaluation) -> Score:
        best = [max(f1(item.output, reference) for reference in item.references) for item in evaluation.outputs]
        return Score(100 * sum(best) / len(best), signature="tok:none|case:mixed")


def f1(output: str, reference: str) -> float:
    """Returns 2 · (number of common words) / (number of words of both texts)."""
    words = Counter(output.split()), Counter(reference.split())
    total = words[0].total() + words[1].total()
    return 2 * (words[0] & words[1]).total() / total if total else 1.0
