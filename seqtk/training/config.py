"""The root of a run's configuration."""

from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, Literal

from seqtk.config import schema
from seqtk.criterions import CriterionConfig, criterions
from seqtk.criterions.cross_entropy import LabelSmoothedConfig
from seqtk.data.plan import BatchingConfig
from seqtk.generation.search import SearchConfig
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
    metric: str = "loss"  # what "best" means: loss, nll, ppl, bits_per_byte, word_ppl, … (lower), bleu, chrf (higher)
    decode: bool = False  # translate the split as well, for BLEU and chrF
    search: SearchConfig = SearchConfig()
    patience: int = 0  # stop after so many validations without a new best; 0: never


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
        self._check_metric()
        self.validation.search.check()

    def _check_metric(self) -> None:
        """Refuse a figure that no validation will give, as far as task and criterion say which there are."""
        metric = self.validation.metric
        task, criterion = tasks.class_of(type(self.task)), criterions.class_of(type(self.criterion))
        if task.figure_names is None or task.score_names is None or criterion.sum_names is None:
            return
        known = [*criterion.sum_names, *task.figure_names, *task.score_names]
        known += ["ppl"] if "nll" in known else []
        if metric not in known:
            name = tasks.name_of(type(self.task))
            raise UserError(f"validation.metric={metric} is no figure of '{name}'.", nearest(metric, known))
        if metric in task.score_names and not self.validation.decode:
            raise UserError(f"validation.metric={metric} needs validation.decode=true.")

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
