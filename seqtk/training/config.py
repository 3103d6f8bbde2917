"""The root of a run's configuration."""

from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, Literal

from seqtk.config import schema
from seqtk.config.fields import setting
from seqtk.criterions import CriterionConfig
from seqtk.criterions.cross_entropy import LabelSmoothedConfig
from seqtk.data.plan import BatchingConfig
from seqtk.generation.search import SearchConfig
from seqtk.metrics import metrics
from seqtk.metrics.base import OUTPUTS
from seqtk.models import ModelConfig
from seqtk.models.transformer import TransformerConfig
from seqtk.optim import OptimizerConfig, ScheduleConfig
from seqtk.optim.adam import AdamConfig
from seqtk.optim.schedules import InverseSqrtConfig
from seqtk.tasks import TaskConfig, tasks
from seqtk.tasks.translation import TranslationConfig
from seqtk.utils.errors import UserError, nearest


@dataclass(frozen=True)
class ValidationConfig:
    """When to validate, and what by."""

    every: int = 0  # updates between validations; 0: at the end of each epoch
    split: str = "valid"  # of the data-bin directory
    metric: str = setting("loss", help="The metric that chooses the best model. Its direction is the metric's own.")
    metrics: tuple[str, ...] | None = setting(None, help="The metrics that are reported. null: those of the task.")
    decode: bool = False  # translate the split as well, for BLEU and chrF
    search: SearchConfig = SearchConfig()
    patience: int = 0  # stop after so many validations without a new best; 0: never

    def named_metrics(self) -> list[tuple[str, str]]:
        """Every metric that the config names, with its key."""
        return [("validation.metric", self.metric), *(("validation.metrics", name) for name in self.metrics or ())]


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept in save_dir."""

    every: int = 1000  # updates between checkpoints; one is also saved at each validation and at the end
    keep_last: int = 5  # older checkpoints are removed
    keep_best: int = 1  # models kept by validation.metric, each one file


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training."""

    every: int = 100  # updates between lines
    tensorboard: bool = True  # curves in save_dir/tensorboard
    samples: int = 3  # translations of each decoded validation that go to TensorBoard, and nowhere else


@dataclass(frozen=True)
class TrainConfig:
    """One run: what is learnt from what, how, and what is kept."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("model.attention",)}

    save_dir: str = "checkpoints"  # all that the run writes, and goes on from; of a recipe: checkpoints/<its name>
    user_dir: str | None = None  # a package or module of your own layers and tasks, imported first
    seed: int = 1  # of weights, batch order and dropout
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; weights stay in float32
    threads: int = 0  # CPU threads; 0: torch's choice
    max_updates: int = 0  # stop after so many updates; 0: no limit
    max_epochs: int = 0  # stop after so many epochs; 0: no limit
    update_freq: int = 1  # micro-batches an update, on each device
    clip_norm: float = 0.0  # largest norm of the gradient; 0: not clipped
    batch: BatchingConfig = BatchingConfig()
    task: TaskConfig = TranslationConfig()
    model: ModelConfig = TransformerConfig()
    criterion: CriterionConfig = LabelSmoothedConfig()
    optimizer: OptimizerConfig = AdamConfig()
    schedule: ScheduleConfig = InverseSqrtConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def check(self) -> None:
        """Raises UserError for what makes no run; what belongs to a task, a model and so on is checked there."""
        if not (self.max_updates or self.max_epochs):
            raise UserError("Nothing says when to stop.", "Set max_updates or max_epochs.")
        if not self.save_dir.strip():
            raise UserError("save_dir= is empty.", "It names the folder for everything that the run writes.")
        for key, least in _LEAST.items():
            value = attrgetter(key)(self)
            if value is not None and not value >= least:
                raise UserError(f"{key}={value} must be at least {least}.")
        self._check_metrics()
        self.validation.search.check()

    def _check_metrics(self) -> None:
        for key, name in self.validation.named_metrics():
            if name not in metrics:
                raise UserError(f"{key}={name}: there is no such metric.", nearest(name, metrics))
            able = tasks.class_of(type(self.task)).has_outputs()
            if OUTPUTS in metrics[name].needs and able and not self.validation.decode:
                raise UserError(f"{key}={name}: this metric needs the model's outputs.", "Set validation.decode=true.")

    def length_key(self, slot: str) -> str:
        """The key that sets `max_length` at a slot: the one for all layers where it reaches this one, or its own."""
        try:
            changed = schema.update(self, "attention.max_length", 2**31)
        except UserError:  # another layer that it stands for has no such key
            return f"{slot}.max_length"
        reaches = attrgetter(slot)(changed) != attrgetter(slot)(self)
        return "attention.max_length" if reaches else f"{slot}.max_length"


_LEAST = {
    **dict.fromkeys(("seed", "threads", "max_updates", "max_epochs", "clip_norm"), 0),
    **dict.fromkeys(("validation.every", "validation.patience", "checkpoint.keep_best", "log.samples"), 0),
    **dict.fromkeys(("update_freq", "checkpoint.every", "checkpoint.keep_last", "log.every"), 1),
    **dict.fromkeys(("batch.max_tokens", "batch.max_sentences", "batch.max_length", "batch.streams"), 1),
}
