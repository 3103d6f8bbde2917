"""Cross entropy, with and without label smoothing (fairseq's definition)."""

from dataclasses import dataclass
from typing import Any

from seqtk.attention import State
from seqtk.config.fields import probability
from seqtk.criterions.base import Criterion, CriterionConfig, Loss, criterions, stat
from seqtk.models import Model


@dataclass(frozen=True)
class CrossEntropyConfig(CriterionConfig):
    """Negative log-likelihood of the targets."""


@dataclass(frozen=True)
class LabelSmoothedConfig(CriterionConfig):
    """Cross entropy with label smoothing: moves part of the target's probability to all other tokens."""

    label_smoothing: float = probability(0.1, help="ε: the probability distributed over the V - 1 other tokens.")


class _HeadCriterion(Criterion):
    """Base class of criterions whose losses the model's head computes."""

    label_smoothing: float = 0.0
    stat_names = ("loss", "nll")

    def stats_of(self, model: Model) -> tuple[str, ...]:
        return (*self.stat_names, "correct") if model.head.counts_correct else self.stat_names

    def check(self, model: Model) -> None:
        model.head.check_label_smoothing(self.label_smoothing)

    def forward(self, model: Model, batch: Any, state: State = None) -> Loss:
        features_BTD, state = model(batch, state)
        losses = model.head(features_BTD, batch.target, pad_BT=batch.pad, label_smoothing=self.label_smoothing)
        stats = {"loss": stat(losses.total, batch.weight), "nll": stat(losses.nll, batch.targets)}
        if losses.correct is not None:
            stats["correct"] = stat(losses.correct, batch.targets)
        return Loss(total=losses.total, weight=batch.weight, stats=stats, state=state)


@criterions.register("cross_entropy", CrossEntropyConfig)
class CrossEntropy(_HeadCriterion):
    """Cross entropy: the sum over the targets of -log p(target)."""

    def __init__(self, config: CrossEntropyConfig) -> None:
        super().__init__()


@criterions.register("label_smoothed_cross_entropy", LabelSmoothedConfig)
class LabelSmoothedCrossEntropy(_HeadCriterion):
    """Cross entropy with label smoothing: the target has probability 1 - ε, each of V-1 other tokens ε/(V-1).

    The loss is the sum over the targets of (1 - ε - ε/(V-1)) · nll + ε/(V-1) · Σ_v -log p_v.
    """

    def __init__(self, config: LabelSmoothedConfig) -> None:
        super().__init__()
        self.label_smoothing = config.label_smoothing
