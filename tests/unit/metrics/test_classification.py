"""Metrics of classifiers, compared with plain loops over their definitions, and confidence intervals."""

import tracemalloc

import numpy as np
import pytest

from seqtk.metrics import ClassOutput, Evaluation, Predictions, metrics
from seqtk.metrics.classification import BINS, per_class
from seqtk.utils.errors import UserError

CLASSES = 4


def outputs(examples: int = 200, *, classes: int = CLASSES, skill: float = 1.0, seed: int = 1) -> list[ClassOutput]:
    random = np.random.default_rng(seed)
    target_N = random.integers(classes, size=examples)
    logit_NC = random.normal(size=(examples, classes)) + skill * np.eye(classes)[target_N]
    log_prob_NC = logit_NC - np.log(np.exp(logit_NC).sum(1, keepdims=True))
    return [
        ClassOutput(index, "", "", ("",), target=int(target), log_probs=tuple(log_probs))
        for index, (target, log_probs) in enumerate(zip(target_N, log_prob_NC.tolist(), strict=True))
    ]


def value(name: str, found: list[ClassOutput]) -> float:
    return metrics[name]().compute(Evaluation(outputs=found)).value


def predicted(output: ClassOutput) -> int:
    return int(np.argmax(output.log_probs))


class TestMacroF1:
    def test_macro_f1_equals_its_definition(self) -> None:
        found = outputs()
        f1 = []
        for name in range(CLASSES):
            true = sum(output.target == name == predicted(output) for output in found)
            wrong = sum(output.target != name == predicted(output) for output in found)
            missed = sum(output.target == name != predicted(output) for output in found)
            f1.append(2 * true / (2 * true + wrong + missed))
        assert value("macro_f1", found) == pytest.approx(100 * np.mean(f1))

    def test_classes_without_examples_are_ignored(self) -> None:
        found = [
            ClassOutput(0, "", "", ("",), target=0, log_probs=(-0.1, -3.0, -9.0)),
            ClassOutput(1, "", "", ("",), target=1, log_probs=(-0.1, -3.0, -9.0)),
        ]
        assert value("macro_f1", found) == pytest.approx(100 * (2 / 3 + 0) / 2)

    def test_memory_is_linear_in_the_number_of_classes(self) -> None:
        found = outputs(20, classes=2000)
        tracemalloc.start()
        metrics["macro_f1"]().interval(Evaluation(outputs=found, resamples=100))
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
        tracemalloc.stop()


class TestCalibration:
    def test_calibration_error_equals_its_definition(self) -> None:
        found, total = outputs(), 0.0
        for number in range(BINS):
            inside = [
                output for output in found if number / BINS < np.exp(max(output.log_probs)) <= (number + 1) / BINS
            ]
            if inside:
                right = np.mean([output.target == predicted(output) for output in inside])
                confidence = np.mean([np.exp(max(output.log_probs)) for output in inside])
                total += len(inside) / len(found) * abs(right - confidence)
        assert value("ece", found) == pytest.approx(100 * total)

    def test_certain_correct_prediction_is_calibrated(self) -> None:
        right = [ClassOutput(0, "", "", ("",), target=1, log_probs=(-50.0, 0.0))]
        wrong = [ClassOutput(0, "", "", ("",), target=0, log_probs=(-50.0, 0.0))]
        assert value("ece", right) == pytest.approx(0)
        assert value("ece", wrong) == pytest.approx(100)


class TestPerClass:
    def test_mean_f1_of_classes_equals_macro_f1(self) -> None:
        found = outputs()
        confusion_CC = Predictions(found).confusion()
        figures = per_class(confusion_CC, [str(number) for number in range(CLASSES)])
        assert np.mean([each.f1 for each in figures]) == pytest.approx(value("macro_f1", found))
        assert sum(each.examples for each in figures) == len(found)
        first = figures[0]
        assert first.recall == pytest.approx(100 * confusion_CC[0, 0] / confusion_CC[0].sum())
        assert first.precision == pytest.approx(100 * confusion_CC[0, 0] / confusion_CC[:, 0].sum())

    def test_class_without_examples_has_zeros(self) -> None:
        (_, absent) = per_class(np.array([[3, 0], [0, 0]]), ["there", "absent"])
        assert (absent.precision, absent.recall, absent.f1, absent.examples) == (0, 0, 0, 0)


def evaluation(found: list[ClassOutput], *, resamples: int = 1000) -> Evaluation:
    right = [output.target == predicted(output) for output in found]
    nll = [-output.log_probs[output.target] for output in found]
    count = float(len(found))
    stats = {"correct": (float(sum(right)), count), "nll": (float(sum(nll)), count)}
    return Evaluation(stats, found, resamples=resamples)


class TestIntervals:
    def test_accuracy_interval_is_binomial(self) -> None:
        score = metrics.compute(["accuracy"], evaluation(outputs(400)))["accuracy"]
        assert score.interval is not None
        share = score.value / 100
        half = 196 * (share * (1 - share) / 400) ** 0.5
        assert score.interval == pytest.approx((score.value - half, score.value + half), abs=0.6)

    @pytest.mark.parametrize("name", ["accuracy", "nll", "macro_f1", "ece"])
    def test_sample_of_all_examples_gives_the_value(self, name: str) -> None:
        found = outputs()
        metric = metrics[name]()
        rows_1N = np.arange(len(found))[None]
        whole = metric.values(Predictions(found), rows_1N)[0]  # type: ignore[attr-defined]
        assert whole == pytest.approx(metric.compute(evaluation(found)).value)

    @pytest.mark.parametrize("name", ["accuracy", "nll", "macro_f1"])
    def test_interval_covers_the_true_value(self, name: str) -> None:
        truth = metrics.compute([name], evaluation(outputs(50_000, seed=9), resamples=0))[name].value
        inside = 0
        for seed in range(40):
            score = metrics.compute([name], evaluation(outputs(150, seed=seed), resamples=300))[name]
            assert score.interval is not None
            inside += score.interval[0] <= truth <= score.interval[1]
        assert inside >= 34  # 38 of 40 are expected; fewer than 34 has a probability below 2 %

    def test_interval_is_reproducible(self) -> None:
        one, other = (metrics.compute(["macro_f1"], evaluation(outputs()))["macro_f1"] for _ in range(2))
        assert one == other

    def test_no_resamples_give_no_interval(self) -> None:
        assert metrics.compute(["accuracy"], evaluation(outputs(), resamples=0))["accuracy"].interval is None


def test_predictions_of_a_language_model_are_empty() -> None:
    assert not Evaluation({"nll": (1.0, 1.0)}).predictions
    with pytest.raises(UserError):
        metrics["macro_f2"]
