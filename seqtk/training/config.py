"""The configuration of a run."""

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import ClassVar, Literal

import torch

from seqtk.checkpoint.run_state import TrainState
from seqtk.config import schema
from seqtk.config.fields import setting
from seqtk.criterions import CriterionConfig
from seqtk.criterions.cross_entropy import LabelSmoothedConfig
from seqtk.data.plan import BatchingConfig, IntOrAuto, is_auto
from seqtk.generation.search import SearchConfig
from seqtk.metrics import metrics
from seqtk.metrics.base import OUTPUTS
from seqtk.models import ModelConfig
from seqtk.models.transformer import TransformerConfig
from seqtk.optim import OptimizerConfig, RateScale, ScheduleConfig
from seqtk.optim.adam import AdamConfig
from seqtk.optim.schedules import InverseSqrtConfig
from seqtk.tasks import TaskConfig, tasks
from seqtk.tasks.translation import TranslationConfig
from seqtk.training import ddp as ddp
from seqtk.training import fsdp2 as fsdp2
from seqtk.training import weights_and_biases as weights_and_biases
from seqtk.training.average import AverageConfig
from seqtk.training.logging import ConsoleConfig, JsonlConfig, Sink, SinkConfig, TensorBoardConfig, sinks
from seqtk.training.parallel import EngineConfig
from seqtk.training.profiling import profiled_updates
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest


@dataclass(frozen=True)
class ValidationSet:
    """A set of examples to validate on."""

    split: str = setting("valid", help="Split of the data.")
    data: str | None = setting(
        None, help="Location of the data; for the default source, a data-bin folder. null: task.data."
    )
    name: str | None = setting(None, help="Name of the set in logs. null: the split, or the last part of data.")

    @property
    def title(self) -> str:
        """The name of the set in logs."""
        return self.name or (Path(self.data).name if self.data else self.split)


@dataclass(frozen=True)
class ValidationConfig:
    """Settings of validation: when, on which data, and the metric that selects the best model."""

    renamed: ClassVar[dict[str, str]] = {"other_splits": ""}

    every: int = setting(0, at_least=0, help="Number of updates between validations. 0: at the end of each epoch.")
    split: str | None = setting(
        "valid",
        help="Split of task.data, or name of a set in sets, that selects the best model. null: no validation.",
    )
    sets: tuple[ValidationSet, ...] = setting(
        (),
        help="Additional sets whose metrics are logged: [{split: valid1}, {data: data-bin/other, split: test}].",
    )
    metric: str = setting(
        "loss", help="Metric that selects the best model. Each metric defines whether higher or lower is better."
    )
    metrics: tuple[str, ...] | None = setting(None, help="Metrics to report. null: the task's metrics.")
    decode: bool = setting(False, help="Also decode the split, for metrics of the output such as BLEU and chrF.")
    search: SearchConfig = SearchConfig()
    patience: int = setting(0, at_least=0, help="Stop after this many validations without a new best model. 0: never.")

    @property
    def named(self) -> dict[str, ValidationSet]:
        """Name → set. The first set selects the best model."""
        if self.split is None:
            return {}
        others = {other.title: other for other in self.sets}
        return {self.split: others.get(self.split, ValidationSet(self.split)), **others}

    def check(self) -> None:
        """Raises UserError if two sets have the same name."""
        titles = [item.title for item in self.sets]
        twice = [name for name in titles if titles.count(name) > 1]
        twice += [
            item.title for item in self.sets if (item.title, item.split, item.data) == (self.split,) * 2 + (None,)
        ]
        if twice:
            raise UserError(
                f"validation.sets has two sets named '{twice[0]}'.", "Set the key name of one of them, or remove one."
            )

    def named_metrics(self) -> list[tuple[str, str]]:
        """Returns (key, name) of each metric in the config."""
        return [("validation.metric", self.metric), *(("validation.metrics", name) for name in self.metrics or ())]


@dataclass(frozen=True)
class CheckpointConfig:
    """Settings of checkpoints."""

    every: int = setting(
        1000,
        at_least=1,
        help="Number of updates between checkpoints. One is also saved at each validation and at the end.",
    )
    asynchronous: bool = setting(
        True,
        help="Write checkpoints and best models in a background thread while training continues. The thread writes "
        "copies of the weights.",
    )
    keep_last: int = setting(5, at_least=1, help="Number of recent checkpoints to keep; older ones are removed.")
    keep_best: int = setting(1, at_least=0, help="Number of best models to keep, by validation.metric. 0: none.")


@dataclass(frozen=True)
class LogConfig:
    """Settings of the training logs."""

    every: int = setting(100, at_least=1, help="Number of updates between log lines.")
    sinks: tuple[SinkConfig, ...] = setting(
        (ConsoleConfig(), JsonlConfig()),
        help="Where metrics are written: console, jsonl, tensorboard, wandb, or a sink of a plug-in.",
    )
    tensorboard: bool = setting(True, help="Also write to save_dir/tensorboard if log.sinks does not list tensorboard.")
    histograms: int = setting(0, at_least=0, help="Number of updates between histograms of the weights. 0: never.")
    peak_tflops: float | None = setting(
        None, above=0, help="Peak TFLOP/s of the device in this precision, to compute mfu. null: the GPU's, if known."
    )
    samples: int = setting(3, at_least=0, help="Number of decoded outputs to log to TensorBoard at each validation.")

    def all_sinks(self) -> tuple[SinkConfig, ...]:
        """Returns the sinks, including TensorBoard if `tensorboard` is true."""
        listed = any(isinstance(sink, TensorBoardConfig) for sink in self.sinks)
        return self.sinks if listed or not self.tensorboard else (*self.sinks, TensorBoardConfig())

    def check(self) -> None:
        """Raises UserError if a sink is listed twice or not available, or if no sink supports histograms."""
        kinds = [sinks.class_of(type(config)) for config in self.all_sinks()]
        names = [sinks.name_of(type(config)) for config in self.all_sinks()]
        for name, kind in zip(names, kinds, strict=True):
            if names.count(name) > 1:
                raise UserError(f"log.sinks lists {name} more than once.", "Remove one of them.")
            kind.check()
        if self.histograms and all(kind.histogram is Sink.histogram for kind in kinds):
            raise UserError(
                f"log.histograms={self.histograms} has no effect with the sinks {', '.join(names) or '[]'}.",
                "Add tensorboard to log.sinks, or set log.histograms=0.",
            )


Part = Literal["optimizer", "schedule", "data", "best"]
PARTS: tuple[Part, ...] = ("optimizer", "schedule", "data", "best")
"""The parts of the state of the run in `init_from`, besides its weights, that a new run can keep."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("model.attention",)}

    save_dir: str = setting(
        "checkpoints", help="Folder of the run. A run resumes from its checkpoints here. Default: checkpoints/RECIPE."
    )
    init_from: str | None = setting(
        None,
        help="Trained model to initialize the weights of a new run from (fine-tuning): a model file, or the folder of "
        "a run. The head, vocabularies, maximum lengths and attention layers may differ.",
    )
    reset: tuple[Part, ...] = setting(
        PARTS,
        help="With init_from=RUN: the parts of the run's state to reset; other parts are kept. schedule: the number of "
        "updates. data: the position in the epoch. best: the best metric and patience.",
    )
    dry_run: bool = setting(
        False, help="Print the model, the batches and the memory of an update, then stop without writing anything."
    )
    user_dir: str | None = setting(None, help="Package or module with plug-ins, which is imported first.")
    seed: int = setting(1, at_least=0, at_most=2**63 - 1, help="Seed of weights, batch order and dropout.")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", help="Device. auto: a GPU if there is one.")
    parallel: EngineConfig | None = setting(
        None,
        help="Parallelism over processes: none, ddp, fsdp2, or one of a plug-in. null: ddp under torchrun, else none.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32",
        help="Precision of the computation. bf16, fp16: autocast with float32 weights. fp16 uses dynamic loss scaling.",
    )
    compile: Literal["off", "blocks", "step"] | None = setting(
        None,
        help="Use torch.compile for each block or for the whole training step. null: step on a GPU, off on a CPU.",
    )
    deterministic: bool = setting(False, help="Use only deterministic operators, which may be slower on a GPU.")
    non_finite: Literal["stop", "skip"] = setting(
        "stop", help="What to do if a loss, gradient or metric is NaN or infinite: stop the run, or skip the update."
    )
    max_skips: int = setting(
        10, at_least=1, help="Maximum number of consecutive updates that non_finite=skip skips before the run stops."
    )
    profile: str | None = setting(
        None, help="START:STOP: write a trace of torch's profiler of these updates (numbered from 1) to save_dir."
    )
    replay: str | None = setting(None, help="Replay file. The run only repeats the update in this file.")
    threads: int = setting(0, at_least=0, at_most=1024, help="CPU threads. 0: torch's default.")
    max_updates: int = setting(0, at_least=0, help="Stop after this many updates. 0: no limit.")
    max_epochs: int = setting(0, at_least=0, help="Stop after this many epochs. 0: no limit.")
    max_hours: float = setting(
        0.0,
        at_least=0,
        help="After this many hours, the run saves a checkpoint and exits with code 138; the same command resumes it. "
        "0: no limit.",
    )
    update_freq: IntOrAuto = setting(
        1,
        at_least=1,
        help="Gradient accumulation: micro-batches per update on each device. auto: from batch.tokens_per_update.",
    )
    clip_norm: float = setting(0.0, at_least=0, help="Maximum norm of the gradient. 0: no clipping.")
    freeze: tuple[str, ...] = setting(
        (), help="Names of weights or modules to freeze, such as encoder or *.norm (* is a wildcard)."
    )
    lr_scales: tuple[RateScale, ...] = setting(
        (),
        help="Factors of learning rates: [{name: encoder, scale: 0.1}]. If several match a weight, the last applies.",
    )
    layer_decay: float = setting(
        1.0,
        above=0,
        at_most=1,
        help="Layer-wise decay: ratio of the learning rate of a block to that of the next block. 1: no decay.",
    )
    ema: AverageConfig | None = setting(None, help="Exponential moving average of the weights. null: no average.")
    batch: BatchingConfig = BatchingConfig()
    task: TaskConfig = TranslationConfig()
    model: ModelConfig = TransformerConfig()
    criterion: CriterionConfig = LabelSmoothedConfig()
    optimizer: OptimizerConfig = AdamConfig()
    schedule: ScheduleConfig = InverseSqrtConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def autocast(self) -> torch.dtype | None:
        """The data type of autocast, or None for float32, which does not use autocast."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def auto_keys(self) -> list[str]:
        """The keys whose value is `auto`."""
        values = {"batch.max_tokens": self.batch.max_tokens, "update_freq": self.update_freq}
        return [key for key, value in values.items() if is_auto(value)]

    def check(self) -> None:
        """Checks combinations of settings before anything is built.

        Raises:
            UserError: If the run has no end or no folder, or if settings contradict each other.
        """
        if not (self.max_updates or self.max_epochs):
            raise UserError("max_updates and max_epochs are not set, so the run would never end.", "Set one of them.")
        if not self.save_dir.strip():
            raise UserError("save_dir= is empty.", "Set it to the folder for everything that the run writes.")
        if set(self.reset) != set(PARTS) and not self.init_from:
            raise UserError(
                f"reset={','.join(self.reset)} has no effect without init_from.", "Set init_from, or remove reset."
            )
        if self.profile is not None:
            profiled_updates(self.profile)
        self.validation.check()
        self.log.check()
        if self.task.temperature != 1 and not self.task.mix:
            raise UserError(
                f"task.temperature={self.task.temperature} has no effect without task.mix.",
                "Set task.mix, or remove task.temperature.",
            )
        self._check_validated()
        self._check_auto()
        self._check_metrics()
        if self.validation.decode:
            self.validation.search.check(key="validation.search")

    def _check_validated(self) -> None:
        """Raises UserError if validation is disabled and a setting requires it."""
        used = {
            "validation.patience": self.validation.patience > 0,
            "validation.sets": bool(self.validation.sets),
            "checkpoint.keep_best": self.checkpoint.keep_best > 1,
        }
        for key in [key for key, is_used in used.items() if is_used and self.validation.split is None]:
            raise UserError(
                f"{key} has no effect, because validation.split=null disables validation.",
                f"Set validation.split, or remove {key}.",
            )

    def _check_auto(self) -> None:
        if self.batch.tokens_per_update is not None and not self.auto_keys:
            raise UserError(
                f"batch.tokens_per_update={self.batch.tokens_per_update} has no effect without auto.",
                "Set batch.max_tokens=auto or update_freq=auto, or batch.tokens_per_update=null.",
            )
        if self.auto_keys and self.batch.streams is not None:
            key = self.auto_keys[0]
            raise UserError(f"{key}=auto is not possible with batch.streams.", f"Set {key} to a number.")
        if is_auto(self.update_freq) and (self.batch.tokens_per_update is None or self.batch.max_tokens is None):
            raise UserError(
                "update_freq=auto requires batch.tokens_per_update and batch.max_tokens.",
                "Set both of them, or set update_freq to a number.",
            )

    def _check_metrics(self) -> None:
        for key, name in self.validation.named_metrics():
            if name not in metrics:
                raise UserError(f"{key}={name}: there is no metric with this name.", nearest(name, metrics))
            has_outputs = tasks.class_of(type(self.task)).has_outputs()
            if OUTPUTS in metrics[name].needs and has_outputs and not self.validation.decode:
                raise UserError(
                    f"{key}={name} requires decoded outputs.",
                    "Set validation.decode=true, or choose a different metric.",
                )

    def is_over(self, state: TrainState) -> bool:
        """Returns True if a run in this state is finished."""
        return bool(
            (self.max_updates and state.update >= self.max_updates)
            or (self.max_epochs and state.position.epoch > self.max_epochs)
            or (self.validation.patience and state.validations_without_best >= self.validation.patience)
        )

    def length_key(self, slot: str) -> str:
        """Returns the key that sets `max_length` of the attention layers in `slot`.

        This is `attention.max_length`, which sets several slots, if it also sets `slot`. Otherwise, it is
        `{slot}.max_length`.
        """
        try:
            changed = schema.update(self, "attention.max_length", 2**31)
        except UserError:  # some layer that `attention` refers to has no such key
            return f"{slot}.max_length"
        reaches = attrgetter(slot)(changed) != attrgetter(slot)(self)
        return "attention.max_length" if reaches else f"{slot}.max_length"
