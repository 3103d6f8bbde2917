"""A criterion: flooding (Ishida et al. 2020, arXiv 2002.08709), |L - b| + b of the mean loss L of a batch."""

from dataclasses import dataclass
from typing import Any

from seqtk.attention import State
from seqtk.config.fields import setting
from seqtk.criterions import Criterion, CriterionConfig, Loss, criterions
from seqtk.criterions.base import stat
from seqtk.metrics import Evaluation, Metric, Score, metrics
from seqtk.models import Model


@dataclass(frozen=True)
class FloodingConfig(CriterionConfig):
    """Config of flooding, which increases the loss of a batch if it is below a level."""

    level: float = setting(0.1, at_least=0, help="b, in nats per target.")


@criterions.register("flooding", FloodingConfig)
class Flooding(Criterion):
    """Computes |nll - b · weight| + b · weight, where nll is the sum over the targets of a batch."""

    stat_names = ("loss", "nll", "below")

    def __init__(self, config: FloodingConfig) -> None:
        super().__init__()
        self.level = config.level

    def forward(self, model: Model, batch: Any, state: State = None) -> Loss:
        features_BTD, state = model(batch, state)
        losses = model.head(features_BTD, batch.target, pad_BT=batch.pad)
        flood = self.level * batch.weight
        total = (losses.total - flood).abs() + flood
        stats = {
            "loss": stat(total, batch.weight),
            "nll": stat(losses.nll, batch.weight),
            "below": stat((losses.nll < flood).float(), 1),
        }
        return Loss(total=total, weight=batch.weight, stats=stats, state=state)


@metrics.register("share_below", unit="%", higher_is_better=False)
class ShareBelow(Metric):
    """The percentage of batches whose loss is below the level."""

    needs = ("below",)

    def compute(self, evaluation: Evaluation) -> Score:
        return Score(100 * evaluation.mean("below"))
