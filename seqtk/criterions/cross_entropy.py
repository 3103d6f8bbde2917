"""Cross entropy, plain and label-smoothed (fairseq's definition)."""

from dataclasses import dataclass
from typing import Any

from seqtk.attention import State
from seqtk.criterions.base import Criterion, CriterionConfig, Loss, criterions
from seqtk.models import Model
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class CrossEntropyConfig(CriterionConfig):
    """Negative log-likelihood of the targets."""


@dataclass(frozen=True)
class LabelSmoothedConfig(CriterionConfig):
    """Cross entropy with a share of the probability spread over the other tokens."""

    label_smoothing: float = 0.1  # ε, spread over the V - 1 tokens that are not the target


class _TokenCriterion(Criterion):
    label_smoothing: float = 0.0
    sum_names = ("loss", "nll")

    def forward(self, model: Model, batch: Any, carried: State = None) -> Loss:
        features_BTD, carried = model.read(batch, carried)
        losses = model.head.losses(features_BTD, batch.target_BT, label_smoothing=self.label_smoothing)
        sums = {"loss": losses.total.detach(), "nll": losses.nll}
        return Loss(total=losses.total, weight=batch.weight, sums=sums, carried=carried)


@criterions.register("cross_entropy", CrossEntropyConfig)
class CrossEntropy(_TokenCriterion):
    """Σ -log p(target)."""

    def __init__(self, config: CrossEntropyConfig) -> None:
        super().__init__()


@criterions.register("label_smoothed_cross_entropy", LabelSmoothedConfig)
class LabelSmoothedCrossEntropy(_TokenCriterion):
    """Σ (1 - ε - ε/(V-1)) · nll + ε/(V-1) · Σ_v -log p_v."""

    def __init__(self, config: LabelSmoothedConfig) -> None:
        super().__init__()
        if not 0 <= config.label_smoothing < 1:
            raise UserError(f"label_smoothing={config.label_smoothing} is not possible: it is a share, less than 1.")
        self.label_smoothing = config.label_smoothing
