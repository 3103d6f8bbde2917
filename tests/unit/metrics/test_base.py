import math

import pytest

from seqtk.data.report import TextCount
from seqtk.metrics import Evaluation, Metric, Output, Score, metrics
from seqtk.metrics.base import MetricRegistry
from seqtk.utils.errors import UserError


def output(text: str, *references: str) -> Output:
    return Output(index=0, source="", output=text, references=references)


class TestRegistry:
    def test_registered_metric_has_unit_and_direction(self) -> None:
        registry = MetricRegistry()

        @registry.register("longest", unit="words", higher_is_better=True)
        class Longest(Metric):
            needs = ("outputs",)

            def compute(self, evaluation: Evaluation) -> Score:
                return Score(max(len(item.output.split()) for item in evaluation.outputs))

        assert registry["longest"] is Longest
        assert (Longest.unit, Longest.higher_is_better) == ("words", True)
        scores = registry.compute(["longest"], Evaluation(outputs=[output("a b", "c")]))
        assert scores == {"longest": Score(2)}

    def test_metric_names_are_unique(self) -> None:
        with pytest.raises(ValueError, match="bleu"):
            metrics.register("bleu", unit="%", higher_is_better=True)

    def test_unknown_metric_suggests_a_similar_name(self) -> None:
        with pytest.raises(UserError, match="bleu"):
            metrics["blue"]

    def test_higher_is_better_is_right_for_each_metric(self) -> None:
        higher = {name for name in metrics if metrics[name].higher_is_better}
        assert {"bleu", "chrf", "accuracy"} <= higher
        assert not {"loss", "nll", "ppl", "ter", "word_ppl", "bits_per_byte"} & higher

    @pytest.mark.parametrize(("name", "better"), [("bleu", 2.0), ("ter", 1.0)])
    def test_is_better_depends_on_the_direction(self, name: str, better: float) -> None:
        metric = metrics[name]()
        worse = 3.0 - better
        assert metric.is_better(better, worse)
        assert not metric.is_better(worse, better)
        assert not metric.is_better(better, better)
        assert metric.is_better(worse, None)


class TestAvailability:
    def test_evaluation_lists_available_inputs_of_metrics(self) -> None:
        assert Evaluation().provides == set()
        evaluation = Evaluation({"nll": (1.0, 1.0)}, [output("a", "b")], TextCount(1, 1, 1, 1))
        assert evaluation.provides == {"nll", "outputs", "text_size"}

    def test_metrics_without_their_inputs_are_skipped(self) -> None:
        scores = metrics.compute(metrics, Evaluation({"nll": (6.0, 3.0)}))
        assert scores.keys() == {"nll", "ppl", "bits_per_token"}

    def test_unregistered_statistics_are_reported_as_means(self) -> None:
        scores = metrics.compute(["nll"], Evaluation({"nll": (6.0, 3.0), "hits": (1.0, 4.0), "loss": (1.0, 1.0)}))
        assert {name: score.value for name, score in scores.items()} == {"nll": 2.0, "hits": 0.25}


class TestValues:
    def test_values_are_weighted_means(self) -> None:
        evaluation = Evaluation({"nll": (6.0, 3.0), "loss": (9.0, 3.0), "correct": (1.0, 4.0)})
        values = {name: score.value for name, score in metrics.compute(metrics, evaluation).items()}
        expected = {"loss": 3.0, "nll": 2.0, "ppl": math.exp(2.0), "bits_per_token": 2 / math.log(2), "accuracy": 25.0}
        assert values == pytest.approx(expected)

    def test_sum_of_weights_may_be_less_than_one(self) -> None:
        values = metrics.compute(["loss", "bits_per_token"], Evaluation({"loss": (0.3, 0.15), "nll": (0.3, 0.15)}))
        assert [score.value for score in values.values()] == pytest.approx([2.0, 2 / math.log(2)])

    def test_means_without_targets_are_zero(self) -> None:
        values = metrics.compute(metrics, Evaluation({"loss": (0.0, 0.0), "nll": (0.0, 0.0)}))
        assert {name: score.value for name, score in values.items()} == {
            "loss": 0.0,
            "nll": 0.0,
            "ppl": 1.0,
            "bits_per_token": 0.0,
        }

    def test_perplexity_is_capped(self) -> None:
        assert metrics["ppl"]().compute(Evaluation({"nll": (1e6, 1.0)})).value == math.exp(700.0)
