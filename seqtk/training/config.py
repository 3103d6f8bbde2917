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
from seqtk.training.logging import ConsoleConfig, JsonlConfig, SinkConfig, TensorBoardConfig, sinks
from seqtk.training.parallel import EngineConfig
from seqtk.training.profiling import profiled_updates
from seqtk.utils.errors import UserError, nearest


@dataclass(frozen=True)
class ValidationSet:
    """A set of examples to validate on."""

    split: str = setting("valid", help="The split.")
    data: str | None = setting(None, help="Where it is: of the default source, a data-bin directory. null: task.data.")
    name: str | None = setting(None, help="What the log calls it. null: the split, or the last part of data.")

    @property
    def title(self) -> str:
        """What the log calls it."""
        return self.name or (Path(self.data).name if self.data else self.split)


@dataclass(frozen=True)
class ValidationConfig:
    """When to validate, on what, and by which metric the best model is chosen."""

    renamed: ClassVar[dict[str, str]] = {"other_splits": ""}

    every: int = setting(0, at_least=0, help="Updates between validations. 0: at the end of each epoch.")
    split: str | None = setting(
        "valid",
        help="The split of task.data, or the name of one of validation.sets, that chooses the best model. "
        "null: there is no validation.",
    )
    sets: tuple[ValidationSet, ...] = setting(
        (),
        help="Further sets whose metrics are logged: [{split: valid1}, {data: data-bin/other, split: test}].",
    )
    metric: str = setting("loss", help="The metric that chooses the best model. Its direction is the metric's own.")
    metrics: tuple[str, ...] | None = setting(None, help="The metrics that are reported. null: the task's metrics.")
    decode: bool = setting(False, help="Also decode the split, for metrics of the output such as BLEU and chrF.")
    search: SearchConfig = SearchConfig()
    patience: int = setting(0, at_least=0, help="Stop after this many validations without a new best model. 0: never.")

    @property
    def named(self) -> dict[str, ValidationSet]:
        """The sets by name, first the one that chooses the best model."""
        if self.split is None:
            return {}
        others = {each.title: each for each in self.sets}
        return {self.split: others.get(self.split, ValidationSet(self.split)), **others}

    def check(self) -> None:
        """Raises UserError if two sets have one name, or if settings have no effect without a validation."""
        titles = [each.title for each in self.sets]
        twice = [name for name in titles if titles.count(name) > 1]
        twice += [
            each.title for each in self.sets if (each.title, each.split, each.data) == (self.split,) * 2 + (None,)
        ]
        if twice:
            raise UserError(
                f"validation.sets has two sets of the name '{twice[0]}'.", "Set name= to another one, or remove it."
            )
        for key, value in (("patience", self.patience), ("sets", self.sets)):
            if self.split is None and value:
                raise UserError(
                    f"validation.{key} has no effect: validation.split=null is no validation.",
                    f"Set validation.split, or remove validation.{key}.",
                )

    def named_metrics(self) -> list[tuple[str, str]]:
        """Every metric that the config names, with its key."""
        return [("validation.metric", self.metric), *(("validation.metrics", name) for name in self.metrics or ())]


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept in save_dir."""

    every: int = setting(
        1000, at_least=1, help="Updates between checkpoints. One is also saved at each validation and at the end."
    )
    asynchronous: bool = setting(
        True,
        help="Write checkpoints and best models in a thread, from copies of the weights, while training continues.",
    )
    keep_last: int = setting(5, at_least=1, help="Number of recent checkpoints to keep; older ones are removed.")
    keep_best: int = setting(1, at_least=0, help="Number of best models to keep, by validation.metric.")


@dataclass(frozen=True)
class LogConfig:
    """What is logged during training, and where."""

    every: int = setting(100, at_least=1, help="Updates between log lines.")
    sinks: tuple[SinkConfig, ...] = setting(
        (ConsoleConfig(), JsonlConfig()),
        help="Where metrics are written: console, jsonl, tensorboard, wandb, or a plug-in's.",
    )
    tensorboard: bool = setting(True, help="Also write curves to save_dir/tensorboard, whatever log.sinks is.")
    histograms: int = setting(0, at_least=0, help="Updates between histograms of the weights. 0: there are none.")
    peak_tflops: float | None = setting(
        None, above=0, help="Peak TFLOP/s of the device in this precision, for mfu. null: from a table of known GPUs."
    )
    samples: int = setting(3, at_least=0, help="Number of outputs of each decoded validation to log to TensorBoard.")

    def all_sinks(self) -> tuple[SinkConfig, ...]:
        """Returns the sinks, with TensorBoard if it is wanted and not listed."""
        listed = any(isinstance(sink, TensorBoardConfig) for sink in self.sinks)
        return self.sinks if listed or not self.tensorboard else (*self.sinks, TensorBoardConfig())


Part = Literal["optimizer", "schedule", "data", "best"]
PARTS: tuple[Part, ...] = ("optimizer", "schedule", "data", "best")
"""The parts of a run, besides its weights, that another run may start from."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("model.attention",)}

    save_dir: str = setting(
        "checkpoints", help="The folder of the run: results, and where it resumes. Default: checkpoints/RECIPE."
    )
    init_from: str | None = setting(
        None,
        help="A trained model whose weights a new run starts from (fine-tuning): a model file, or the folder of a run. "
        "The head, the vocabularies, the length and the attention layers may differ.",
    )
    reset: tuple[Part, ...] = setting(
        PARTS,
        help="What starts from the beginning with init_from=RUN; what is not listed is kept. schedule: the number of "
        "updates. data: the position in the epoch. best: the best metric and patience.",
    )
    dry_run: bool = setting(
        False, help="Print the model, its batches and the memory of an update, and stop without writing anything."
    )
    user_dir: str | None = setting(None, help="A package or module with plug-ins, imported first.")
    seed: int = setting(1, at_least=0, at_most=2**63 - 1, help="Seed of weights, batch order and dropout.")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", help="Where to compute. auto: a GPU if there is one.")
    parallel: EngineConfig | None = setting(
        None,
        help="How processes share the work: none, ddp, fsdp2, or a plug-in's. null: ddp under torchrun, else none.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32",
        help="Precision of the computation. bf16, fp16: autocast to it; the weights stay in float32. fp16 scales the "
        "loss.",
    )
    compile: Literal["off", "blocks", "step"] | None = setting(
        None,
        help="What torch.compile compiles: each block, or the whole training step. null: the step on a GPU, off on a "
        "CPU.",
    )
    deterministic: bool = setting(
        False, help="Use only operators with the same result in every run, which may be slower on a GPU."
    )
    non_finite: Literal["stop", "skip"] = setting(
        "stop", help="After a loss, gradient or metric that is not finite: stop the run, or skip the update."
    )
    max_skips: int = setting(10, at_least=1, help="Stop after more consecutive updates that non_finite=skip skipped.")
    profile: str | None = setting(
        None, help="START:STOP: write a trace of torch's profiler of these updates (numbers from 1) to save_dir."
    )
    replay: str | None = setting(None, help="Repeat the update in this replay file, and nothing else.")
    threads: int = setting(0, at_least=0, at_most=1024, help="CPU threads. 0: torch's default.")
    max_updates: int = setting(0, at_least=0, help="Stop after this many updates. 0: no limit.")
    max_epochs: int = setting(0, at_least=0, help="Stop after this many epochs. 0: no limit.")
    max_hours: float = setting(
        0.0, at_least=0, help="Save and exit with code 138 after so long; the same command resumes. 0: no limit."
    )
    update_freq: IntOrAuto = setting(
        1, at_least=1, help="Micro-batches per update on each device. auto: as batch.tokens_per_update requires."
    )
    clip_norm: float = setting(0.0, at_least=0, help="Maximum norm of the gradient. 0: no clipping.")
    freeze: tuple[str, ...] = setting(
        (), help="Names of weights or modules that do not train, such as encoder or *.norm; * is a wildcard."
    )
    lr_scales: tuple[RateScale, ...] = setting(
        (), help="Factors of the learning rate by name: [{name: encoder, scale: 0.1}]. The last that matches applies."
    )
    layer_decay: float = setting(
        1.0, above=0, at_most=1, help="Factor of the learning rate from each block to the one below it. 1: none."
    )
    ema: AverageConfig | None = setting(None, help="An exponential moving average of the weights. null: none.")
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
        """What `precision` computes in; None is float32."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def auto_keys(self) -> list[str]:
        """The keys that are set to `auto`."""
        values = {"batch.max_tokens": self.batch.max_tokens, "update_freq": self.update_freq}
        return [key for key, value in values.items() if is_auto(value)]

    def check(self) -> None:
        """Checks settings against each other, before anything is built.

        Raises:
            UserError: If the run has no end, no folder, or a metric that its task does not have.
        """
        if not (self.max_updates or self.max_epochs):
            raise UserError("Set max_updates or max_epochs: the run has no end.")
        if not self.save_dir.strip():
            raise UserError("save_dir= is empty.", "Set it to the folder for everything that the run writes.")
        if set(self.reset) != set(PARTS) and not self.init_from:
            raise UserError(
                f"reset={','.join(self.reset)} has no effect without init_from.", "Set init_from, or remove reset."
            )
        if self.profile is not None:
            profiled_updates(self.profile)
        self.validation.check()
        for sink in self.log.all_sinks():
            sinks.class_of(type(sink)).check()
        if self.task.temperature != 1 and not self.task.mix:
            raise UserError(
                f"task.temperature={self.task.temperature} has no effect without task.mix.",
                "Set task.mix, or remove task.temperature.",
            )
        self._check_auto()
        self._check_metrics()
        if self.validation.decode:
            self.validation.search.check()

    def _check_auto(self) -> None:
        if self.batch.tokens_per_update is not None and not self.auto_keys:
            raise UserError(
                f"batch.tokens_per_update={self.batch.tokens_per_update} has no effect on numbers.",
                "Set batch.max_tokens=auto or update_freq=auto, or batch.tokens_per_update=null.",
            )
        if self.auto_keys and self.batch.streams is not None:
            key = self.auto_keys[0]
            raise UserError(f"{key}=auto is not possible with batch.streams.", f"Set {key} to a number.")
        if is_auto(self.update_freq) and (self.batch.tokens_per_update is None or self.batch.max_tokens is None):
            raise UserError(
                "update_freq=auto needs to know the size of an update and of a batch.",
                "Set batch.tokens_per_update and batch.max_tokens, or update_freq to a number.",
            )

    def _check_metrics(self) -> None:
        for key, name in self.validation.named_metrics():
            if name not in metrics:
                raise UserError(f"{key}={name}: there is no such metric.", nearest(name, metrics))
            able = tasks.class_of(type(self.task)).has_outputs()
            if OUTPUTS in metrics[name].needs and able and not self.validation.decode:
                raise UserError(
                    f"{key}={name}: this metric needs the model's outputs.",
                    "Set validation.decode=true, or choose another metric.",
                )

    def is_over(self, state: TrainState) -> bool:
        """Whether a run ends in this state."""
        return bool(
            (self.max_updates and state.update >= self.max_updates)
            or (self.max_epochs and state.position.epoch > self.max_epochs)
            or (self.validation.patience and state.validations_without_best >= self.validation.patience)
        )

    def length_key(self, slot: str) -> str:
        """Returns the key that sets `max_length` of the layers at `slot`: the shared key if it applies to them."""
        try:
            changed = schema.update(self, "attention.max_length", 2**31)
        except UserError:  # another layer that the alias reaches has no such key
            return f"{slot}.max_length"
        reaches = attrgetter(slot)(changed) != attrgetter(slot)(self)
        return "attention.max_length" if reaches else f"{slot}.max_length"
