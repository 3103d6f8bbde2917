"""The training loop, from top to bottom: build a run from its config, restore its last checkpoint, and train.

An update adds up the weights of its micro-batches over all processes, then runs each backward pass scaled so that the
gradients are those of (sum of losses) / (sum of weights), reduces them on the last one, clips, and steps. So an update
is the same however it is split. Dropout and batch order are functions of (seed, update, rank) and (seed, epoch).

Between two log lines the host reads nothing from the device: losses are summed there, and an update whose gradient is
not finite, with all that follow it, is skipped there until the host learns of it.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqtk.attention import Attention
from seqtk.checkpoint.model_file import Tensors, set_tensors, tensors_of
from seqtk.checkpoint.restore import load_checkpoint, set_optimizer_tensors
from seqtk.checkpoint.run_state import Checkpoints, TrainState, fingerprint, locked, optimizer_tensors
from seqtk.config import schema
from seqtk.corpora import demo
from seqtk.criterions import criterions
from seqtk.criterions.base import Stats
from seqtk.data.batch import Batch
from seqtk.data.loader import load_updates
from seqtk.data.plan import Position, Update, epoch_plan
from seqtk.metrics import Evaluation, metrics
from seqtk.optim import can_skip, optimizers, schedules, set_rate
from seqtk.tasks import tasks
from seqtk.training.checks import banner, check_run
from seqtk.training.config import TrainConfig
from seqtk.training.logging import Logger, RunInfo
from seqtk.training.parallel import Engine, TrainStep, start_engine
from seqtk.training.resume import check_resumable, format_list
from seqtk.training.start import start_from
from seqtk.training.stream_state import StreamState
from seqtk.training.validation import ValidationInterrupted, reported_metrics, validate
from seqtk.utils.errors import UserError
from seqtk.utils.memory import keep_freed_memory, out_of_memory_errors, peak_memory_gib

OF_WEIGHTS = "/weight"
"""Ends the name of the sum of a statistic's weights, next to the sum of the statistic."""


@dataclass(frozen=True)
class Result:
    """Where a run ended."""

    save_dir: Path
    update: int
    best: float | None
    """The best value of validation.metric."""
    signal: int = 0
    """The signal that stopped the run before its end, or 0."""


class NotFiniteError(UserError):
    """The loss or a metric is not a finite number: training has diverged."""


def train(config: TrainConfig) -> Result:
    """Trains as `config` says, in each process that torchrun started, or resumes the run in `save_dir`.

    The demo corpus is made at `data-bin/demo` if it is missing.

    Raises:
        UserError: If the config or the data do not allow it, if training diverges, or if memory runs out.
    """
    config.check()
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    engine = start_engine(config.parallel, device=config.device)
    try:
        if config.task.data == demo.DESTINATION:
            demo.ensure()
        lock = locked(Path(config.save_dir)) if engine.is_first else nullcontext()
        with lock, out_of_memory_errors(engine.device, *_smaller_batch(config)):
            return Trainer(config, engine=engine).fit()
    finally:
        engine.close()


class Trainer:
    """A run: built from its config, and restored from its save_dir if that holds a checkpoint.

    Args:
        config: The run's config.
        engine: The processes that share the work.

    Raises:
        UserError: If the data do not suit the model, or the checkpoint is from another run.
    """

    def __init__(self, config: TrainConfig, *, engine: Engine) -> None:
        config.check()
        self.config, self.engine = config, engine
        self.log = Logger((), RunInfo(Path(config.save_dir)))  # until the run starts
        self._build()
        check_run(config, task=self.task, model=self.model, criterion=self.step.criterion, train_set=self.train_set)
        self._restore()

    def _build(self) -> None:
        config, engine = self.config, self.engine
        self.task = tasks.build(config.task)
        self.train_set = self.task.training_set(1)
        torch.manual_seed(config.seed)
        with out_of_memory_errors(engine.device, "The weights of the model do not fit.", "Set smaller sizes in model."):
            self.model = self.task.model(config.model).to(engine.device)
        self.step = TrainStep(self.model, criterions.build(config.criterion), bf16=config.precision == "bf16")
        self.wrapped = engine.wrap(self.step)
        self.optimizer = optimizers.build(config.optimizer, self.model)  # of the parameters as the engine left them
        self.schedule = schedules.build(config.schedule, lr=config.optimizer.lr, max_steps=config.max_updates or None)
        self.streams = StreamState(config.batch.streams, world=engine, update_freq=config.update_freq)
        self.checkpoints = Checkpoints(
            Path(config.save_dir),
            config=schema.to_dict(config),
            assets=self.task.assets(),
            metric=config.validation.metric,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
        )
        layers = [layer for _, layer in self.model.attention_layers()]
        self._skips_on_device = (
            can_skip(self.optimizer)
            and config.batch.streams is None
            and all(type(layer).after_update is Attention.after_update for layer in layers)
        )
        self._stop_signal = 0
        self._finite: Tensor = torch.ones((), dtype=torch.bool, device=engine.device)

    def _restore(self) -> None:
        """Sets state, weights and optimizer from the latest checkpoint, if there is one."""
        config = self.config
        metric = f"{config.validation.metric} of {config.validation.split}"
        corpus = fingerprint(self.train_set)
        self.state = TrainState(metric=metric, corpus=corpus)
        self._resume_notes: list[str] = []
        self._has_changes = False
        folder = self.checkpoints.latest()
        if folder is not None:
            saved = load_checkpoint(folder)
            changed, rates = check_resumable(saved, config, assets=self.task.assets(), corpus=corpus)
            self._set_weights(saved.model.tensors, saved.optimizer, source=str(folder))
            self.streams.scatter(saved.streams)
            self.state = saved.state.replace(corpus=corpus)
            self._has_changes = bool(changed)
            self._resume_notes.append(f"Resuming from update {self.state.update:,}, epoch {self.state.position.epoch}.")
            if changed:
                self._resume_notes.append(f"Changed settings: {format_list(changed)}.")
            if rates and not self._is_over():
                self._resume_notes.append(rates)
        elif config.init_from:
            drawn, assets = self._full_weights(), self.task.assets()
            start = start_from(config, model=self.model, drawn=drawn, assets=assets, state=self.state)
            self._set_weights(start.weights, start.optimizer, source=f"init_from={config.init_from}")
            self.streams.scatter(start.streams)
            self.state = start.state
            self._resume_notes += start.notes
        if self.state.metric != metric:  # there is no best value of another metric yet
            self.state = self.state.replace(metric=metric, best=None, validations_without_best=0)
        self._saved_at = self.state.update
        self._clear_sums()

    def fit(self) -> Result:
        """Trains until the configured end, early stopping, or a signal."""
        config, start = self.config, self.state
        run = RunInfo(Path(config.save_dir), start.update, start.pending_validation, config.max_updates)
        sinks = config.log.all_sinks() if self.engine.is_first else ()
        with Logger(sinks, run) as self.log, self._signals_caught():
            for line in banner(config, model=self.model, train_set=self.train_set, engine=self.engine):
                self.log.info(line)
            for line in self._resume_notes:
                self.log.info(line)
            if start.pending_validation:
                self._validate()
            if not (self._stop_signal or self._is_over()):
                self._train()
            if self._stop_signal:
                pending = ", starting with its validation" if self.state.pending_validation else ""
                self.log.info(
                    f"Stopped by a signal after update {self.state.update:,}. The same command resumes there{pending}."
                )
            else:
                self.log.info(f"Finished after update {self.state.update:,}. The models are in {config.save_dir}.")
                if self._has_changes and self.state.update == start.update:
                    self.log.info("Training had already finished; changed settings had no effect.")
            return Result(self.checkpoints.directory, self.state.update, self.state.best, self._stop_signal)

    def _train(self) -> None:
        """The loop."""
        for update, micro_batches in self._updates():
            self.update(micro_batches)
            self._advance(update)
            if self._is_due(self.config.log.every):
                self._log_interval()
            if self._is_due(self.config.validation.every or None):
                self._save(pending_validation=True)
                self._validate()
            elif self._is_due(self.config.checkpoint.every) or self._stop_signal:
                self._save()
            if self._stop_signal or self._is_over():
                break

    def _updates(self) -> Iterator[tuple[Update, list[Batch]]]:
        """Yields the updates from the current position on, epoch after epoch, with their micro-batches."""
        config = self.config
        while True:
            position = self.state.position
            self.train_set = self.task.training_set(position.epoch)
            plan = epoch_plan(
                self.train_set.sizes_ND,
                config.batch,
                seed=config.seed,
                position=position,
                world=self.engine.size,
                rank=self.engine.rank,
                update_freq=config.update_freq,
            )
            if not plan:
                raise UserError(f"There are no training examples in {config.task.data}.")
            plan[-1] = replace(plan[-1], position_after=Position(position.epoch + 1, 0))
            self._started = time.monotonic()
            yield from load_updates(
                plan, self.train_set, self.task.collate, device=self.engine.device, workers=config.batch.workers
            )

    def update(self, micro_batches: Sequence[Batch]) -> None:
        """Makes one update of the weights; if the gradient is not finite, nothing that a checkpoint holds changes."""
        step, streams = self.state.update, list(self.streams.states)
        weight, stats, norm = self._backward(micro_batches)
        values = torch.stack([norm.double(), *stats.values()])
        self._finite = self._finite & values.isfinite().all()
        if not self._skips_on_device and not bool(self._finite):
            self.streams.states = streams
            self._raise_not_finite(micro_batches)
        self._clip(norm)
        set_rate(self.optimizer, self.schedule.lr(step))
        if self._skips_on_device:
            self.optimizer.found_inf = (~self._finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for_all_ranks = np.random.SeedSequence([self.config.seed, step, 2**32 - 1]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(for_all_ranks))
        for _, layer in self.model.attention_layers():
            layer.after_update(step + 1, generator)
        self._add(tuple(stats), values, weight=weight)

    def _backward(self, micro_batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor], Tensor]:
        """Computes the gradient of an update. Returns its weight, the reported sums, and the gradient's norm."""
        config, engine = self.config, self.engine
        seed = np.random.SeedSequence([config.seed, self.state.update, engine.rank]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        self.wrapped.train()
        (weight,) = engine.sums([float(sum(batch.weight for batch in micro_batches))])
        stats: Stats = {}
        for index, batch in enumerate(micro_batches):
            with engine.gradient_sync(self.wrapped, enabled=index == len(micro_batches) - 1):
                state = self.streams.load(index, rows=len(batch.ids_B))
                total, reported, state = self.wrapped(batch, state)
                self.streams.store(index, state)
                (total * (engine.size / weight)).backward()
            for name, (value, its_weight) in reported.items():
                before = stats.get(name, (0.0, 0.0))
                stats[name] = before[0] + value, before[1] + its_weight
        own = {name: pair[0] for name, pair in stats.items()}
        own |= {f"{name}{OF_WEIGHTS}": pair[1] for name, pair in stats.items()}
        names = sorted(own)
        summed = engine.sum(torch.stack([own[name].double() for name in names])).unbind() if names else ()
        norm = nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None)
        return weight, dict(zip(names, summed, strict=True)), engine.full(norm)

    def _clip(self, norm: Tensor) -> None:
        """Scales the gradient to `clip_norm` where it is longer, without reading its norm."""
        limit = self.config.clip_norm
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if limit and gradients:
            scale = torch.where(norm > limit, limit / norm.double(), 1.0).to(gradients[0].dtype)
            torch._foreach_mul_(gradients, scale)

    def _advance(self, update: Update) -> None:
        """Counts an update, and reads the sums from the device if they are needed now."""
        self._unread.append((self.state, update))
        self.state = self.state.replace(update=self.state.update + 1, position=update.position_after)
        if self._epoch_ended():
            self.streams.clear()
        if self._stop_requested():
            self._stop_signal = self._noted_signal or signal.SIGTERM
        config = self.config
        events = (config.log.every, config.validation.every or None, config.checkpoint.every)
        if self._stop_signal or self._epoch_ended() or any(map(self._is_due, events)):
            self.read_sums()
        self.log.progress(self.state.update)

    def _is_due(self, every: int | None) -> bool:
        """Returns whether something that happens `every` so many updates (None: each epoch) is due."""
        return self._is_over() or (self._epoch_ended() if every is None else self.state.update % every == 0)

    def _epoch_ended(self) -> bool:
        return self.state.position.examples == 0

    def _is_over(self) -> bool:
        config, state = self.config, self.state
        return bool(
            (config.max_updates and state.update >= config.max_updates)
            or (config.max_epochs and state.position.epoch > config.max_epochs)
            or (config.validation.patience and state.validations_without_best >= config.validation.patience)
        )

    # Sums on the device

    def _clear_sums(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._finite = torch.ones((), dtype=torch.bool, device=self.engine.device)
        self._unread: list[tuple[TrainState, Update]] = []
        self._started = time.monotonic()

    def _add(self, stats: tuple[str, ...], values: Tensor, *, weight: float) -> None:
        """Adds the statistics of an update, unless it was skipped, to the sums since the last log line."""
        if self._sums is None:
            self._names = ("norm", *stats, "weight", "updates")
            before = self.state.interval
            start = [
                before.get(name, before.get("weight", 0.0) if name.endswith(OF_WEIGHTS) else 0.0)
                for name in self._names
            ]
            self._sums = torch.tensor(start, dtype=torch.float64, device=self.engine.device)
        made = self._finite.double()
        counts = torch.stack([made * weight, made])
        self._sums = self._sums + torch.cat([torch.where(self._finite, values, 0.0), counts])

    def read_sums(self) -> None:
        """Reads the sums into the state: the only wait for the device between two log lines.

        Raises:
            NotFiniteError: If an update since the last reading was skipped.
        """
        if self._sums is None:
            return
        before = self.state.interval
        sums = dict(zip(self._names, self._sums.tolist(), strict=True))
        seconds = time.monotonic() - self._started
        self._started = time.monotonic()
        timed = {
            "interval": {**sums, "seconds": before.get("seconds", 0.0) + seconds},
            "seconds": self.state.seconds + seconds,
        }
        unread, self._unread = self._unread, []
        made = round(sums["updates"] - before.get("updates", 0.0))
        if made < len(unread):  # the first that was skipped, and with it all after it
            state, update = unread[made]
            self.state = state.replace(**timed)
            indices = [array for array in update.indices if array is not None] or [np.array([0])]
            batches = (self.task.collate([self.train_set[int(index)] for index in array]) for array in indices)
            self._raise_not_finite([batch.to(self.engine.device) for batch in batches])
        self.state = self.state.replace(**timed)

    def _raise_not_finite(self, micro_batches: Sequence[Batch]) -> None:
        """Repeats the update that follows the state, to find out where it is not finite; saves; and raises."""
        self.optimizer.zero_grad(set_to_none=True)
        streams = list(self.streams.states)
        self._backward(micro_batches)
        self.streams.states = streams
        names = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not bool(self.engine.full(parameter.grad).isfinite().all())
        ] or ["the loss"]
        examples = [str(index) for batch in micro_batches for index in batch.ids_B.tolist()]
        raise NotFiniteError(
            f"The gradient of update {self.state.update + 1:,} is not finite, first in {names[0]}.",
            f"Its training examples: {', '.join(examples[:20])}{', …' if len(examples) > 20 else ''}.",
            self._save_before_abort(),
        )

    def _save_before_abort(self) -> str:
        """Saves the state before a failed update, if its weights are finite. Returns advice."""
        self.read_sums()
        good = all(bool(self.engine.full(parameter).isfinite().all()) for parameter in self.model.parameters())
        if good and self.state.update != self._saved_at:
            self._save()
        saved = f"The last checkpoint is of update {self._saved_at:,}" if self._saved_at else "There is no checkpoint"
        return f"{saved}; lower optimizer.lr or set clip_norm."

    # Log, validation, checkpoints

    def _log_interval(self) -> None:
        sums = self.state.interval
        weight, count = sums["weight"], sums["updates"]
        others = ("weight", "updates", "seconds", "norm")
        names = [name for name in sorted(sums) if name not in others and not name.endswith(OF_WEIGHTS)]
        stats = {name: (sums[name], sums.get(f"{name}{OF_WEIGHTS}", weight)) for name in names}
        scores = metrics.compute(reported_metrics(self.config, self.task), Evaluation(stats))
        self.log.metrics(
            "train",
            self.state.update,
            {
                "epoch": self.state.position.epoch - self._epoch_ended(),  # of this update, not of the next
                **{name: score.value for name, score in scores.items()},
                "lr": self.schedule.lr(self.state.update - 1),
                "gnorm": sums["norm"] / count,
                "tokens_per_second": weight / max(sums["seconds"], 1e-9),
                "tokens_per_update": weight / count,
                "memory_gib": peak_memory_gib(self.engine.device),
                "minutes": self.state.seconds / 60,
            },
        )
        for name, layer in self.model.attention_layers():
            self.log.scalars("attention", self.state.update, {f"{name}.{k}": v for k, v in layer.monitored().items()})
        self.state = self.state.replace(interval={})
        self._clear_sums()

    def _validate(self) -> None:
        """Does the pending validation; after a signal it stays pending, for the run that resumes here.

        Raises:
            NotFiniteError: If a metric is not finite.
        """
        config = self.config
        try:
            values, outputs = validate(self.step, self.task, config, engine=self.engine, stop=self._stop_now)
        except ValidationInterrupted:
            return
        metric = config.validation.metric
        if metric not in values:
            raise UserError(f"validation.metric={metric} was not computed; only {', '.join(values)} were.")
        numbers = {name: float(value) for name, value in values.items() if not isinstance(value, str)}
        value, best = numbers[metric], self.state.best
        is_best = math.isfinite(value) and metrics[metric]().is_better(value, best)
        validated = self.state.replace(
            best=value if is_best else best,
            validations_without_best=0 if is_best else self.state.validations_without_best + 1,
            pending_validation=False,
        )
        best_value = {} if validated.best is None else {f"best_{metric}": validated.best}
        self.log.metrics("valid", self.state.update, {**values, **best_value})
        for number, output in enumerate(outputs[: config.log.samples]):
            shown = f"**source** {output.source}\n\n**output** {output.output}\n\n**reference** {output.references[0]}"
            self.log.text(f"sample {number}", self.state.update, shown)
        self._check_finite(numbers)
        self.state = validated
        model = self._full_weights()
        if self.engine.is_first:
            self.checkpoints.save_best(model, self.state, numbers, higher=metrics[metric].higher_is_better)
            self.checkpoints.save_state(self.state)
        self._stop_now()
        self._started = time.monotonic()

    def _check_finite(self, values: dict[str, float]) -> None:
        name = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if name is not None:
            raise NotFiniteError(
                f"The validation of update {self.state.update:,} has {name}={values[name]}: training has diverged.",
                "Lower optimizer.lr or set clip_norm, and set another save_dir.",
                f"To resume from an earlier checkpoint, write its name into {self.checkpoints.directory / 'latest'}.",
            )

    def _save(self, *, pending_validation: bool = False) -> None:
        self.state = self.state.replace(pending_validation=pending_validation)
        model, streams = self._full_weights(), self.streams.gather()
        optimizer = optimizer_tensors(self.model, self.optimizer, full=self.engine.full)
        if self.engine.is_first:
            archive = self.checkpoints.archive_newer(self._saved_at)
            if archive is not None:
                self.log.info(f"Moved checkpoints after update {self._saved_at:,} of an abandoned run to {archive}.")
            self.checkpoints.save(model, optimizer, self.state, streams=streams)
        self._saved_at = self.state.update
        self.engine.barrier()
        self._started = time.monotonic()

    def _full_weights(self) -> Tensors:
        return {name: self.engine.full(tensor) for name, tensor in tensors_of(self.model).items()}

    def _set_weights(self, model: Tensors, optimizer: Tensors, *, source: str) -> None:
        own, local = tensors_of(self.model), self.engine.local
        parts = {name: local(tensor, own[name]) if name in own else tensor for name, tensor in model.items()}
        set_tensors(self.model, parts, source=source)
        set_optimizer_tensors(self.model, self.optimizer, optimizer, source=source, local=local)

    # Signals

    def _stop_requested(self) -> bool:
        """Returns whether any process has received a signal. A collective operation."""
        return self.engine.sums([float(self._noted_signal)]) != [0.0]

    def _stop_now(self) -> bool:
        """Like `_stop_requested`, and records that the run stops."""
        if self._stop_requested() and not self._stop_signal:
            self._stop_signal = self._noted_signal or signal.SIGTERM
        return bool(self._stop_signal)

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the run after this update, with a checkpoint; the second at once.

        It interrupts a validation, whose update is finished and saved.
        """
        if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
            yield
            return

        def note(number: int, _: Any) -> None:
            if self._noted_signal:
                raise KeyboardInterrupt(number)
            self._noted_signal = number
            if self.engine.is_first:
                last = self.state.update + (not self.state.pending_validation)
                line = f"Stopping after update {last:,}; press again to stop at once.\n"
                os.write(2, f"{chr(10) if os.isatty(2) else ''}{line}".encode())  # print may be what was interrupted

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    _noted_signal = 0
    """The signal that this process has received."""


def _smaller_batch(config: TrainConfig) -> tuple[str, str]:
    """Returns advice for a run that does not fit into memory."""
    key, value = "batch.max_tokens", config.batch.max_tokens
    if value is None:
        key, value = "batch.max_sentences", config.batch.max_sentences
    if config.batch.streams is not None or value is None:
        key, value = "task.tokens_per_sample", getattr(config.task, "tokens_per_sample", None) or 1024
    again = " in a new save_dir" if (Path(config.save_dir) / "latest").exists() else ""
    return (
        f"Activations need memory in proportion to {key}={value}.",
        f"Set {key}={max(value // 2, 1)} and update_freq={2 * config.update_freq}{again}: an update is as large.",
    )
