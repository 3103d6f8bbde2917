"""The training loop: builds a run from its config, restores the last checkpoint, and trains.

The loss of an update is (sum of losses) / (sum of weights) over the micro-batches of all processes, so it does not
depend on how the update is split into micro-batches. Gradients are accumulated over micro-batches, reduced in the last
backward pass, and clipped. Dropout depends only on the seed, the update and the rank; the order of batches depends only
on the seed and the epoch.

Between log lines, nothing is copied from the device to the host: losses are summed on the device. If the loss or
gradient of an update is not finite, the device skips this update and all later ones until the host reads the sums. The
run then returns to the state before the failed update, and repeats the update to find the cause. With
`non_finite=skip`, the run continues after this update.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqtk.attention import Attention
from seqtk.checkpoint.model_file import Tensors, set_tensors, tensors_of
from seqtk.checkpoint.restore import set_optimizer_tensors
from seqtk.checkpoint.run_state import Checkpoints, TrainState, fingerprint, latest_checkpoint, locked
from seqtk.config import schema
from seqtk.criterions import criterions
from seqtk.data.batch import Batch
from seqtk.data.loader import load_updates
from seqtk.data.mixing import MixedExamples, lengths_of_run
from seqtk.data.plan import Position, Update, epoch_plan, run_shapes
from seqtk.data.static_shapes import Shape
from seqtk.metrics import metrics
from seqtk.optim import can_skip, freeze, optimizers, rate_scales, scale_rates, schedules, set_rate
from seqtk.tasks import tasks
from seqtk.training.auto_batch import settled
from seqtk.training.average import WeightAverage
from seqtk.training.checks import banner, check_run, prepared
from seqtk.training.compiling import Compilation
from seqtk.training.config import TrainConfig
from seqtk.training.failures import skip_update, skip_validation
from seqtk.training.interval import WEIGHT_SUFFIX, Interval, interval_values
from seqtk.training.logging import Logger, RunInfo
from seqtk.training.loss_scale import LossScale
from seqtk.training.parallel import Engine, TrainStep, local_part, seed_dropout
from seqtk.training.saving import Writer, save_checkpoint, save_validated
from seqtk.training.signals import StopSignal, ending_with_launcher
from seqtk.training.speed import Speed
from seqtk.training.start import Start, resume_from, start_from
from seqtk.training.stream_state import StreamState
from seqtk.training.validation import Validated, ValidationInterrupted, reported_metrics, validate
from seqtk.utils.errors import UserError
from seqtk.utils.memory import out_of_memory_errors, peak_memory_gib


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    save_dir: Path
    update: int
    best: float | None
    """The best value of `validation.metric`."""
    signal: int = 0
    """The signal that stopped the run early, or 0."""


def train(config: TrainConfig) -> Result:
    """Trains a model, or resumes the run in `save_dir`. With torchrun, all processes call this function.

    The demo corpus is created at `data-bin/demo` if the config uses it and it is missing.

    Raises:
        UserError: If the config or the data are invalid, if training diverges, or if memory runs out.
        LostProcessError: If another process of the run has ended or does not respond.
    """
    with prepared(config) as engine:
        lock = locked(Path(config.save_dir)) if engine.is_first else nullcontext()
        with ending_with_launcher(), lock:
            return Trainer(config, engine=engine).fit()


class Trainer:
    """A training run, built from its config and restored from the latest checkpoint in `save_dir`, if there is one.

    Args:
        config: The run's config.
        engine: The engine of the run.

    Raises:
        UserError: If the data do not match the model, or the checkpoint is from a different run.
    """

    def __init__(self, config: TrainConfig, *, engine: Engine) -> None:
        config.check()
        self.config, self.engine = config, engine
        self.log = Logger((), RunInfo(Path(config.save_dir)))  # until the run starts
        self.notes: list[str] = []
        self._build()
        check_run(self)
        self._restore()

    def _build(self) -> None:
        config, engine = self.config, self.engine
        self.task = tasks.build(config.task)
        torch.manual_seed(config.seed)
        with out_of_memory_errors(engine.device, "The weights of the model do not fit.", "Set smaller sizes in model."):
            self.model = self.task.model(config.model).to(engine.device)
        epochs = range(1, self.task.epochs + 1)
        self.train_sets = [self.task.epoch_examples(epoch, seed=config.seed) for epoch in epochs]
        """The training examples of each epoch, until they repeat."""
        self.train_set = self.train_sets[0]
        self._planned: list[Update] = []
        if config.freeze:
            freeze(self.model, config.freeze)
        criterion = criterions.build(config.criterion)
        criterion.check(self.model)
        self.step = TrainStep(self.model, criterion, autocast=config.autocast)
        if config.auto_keys:
            config = self.config = settled(self)
            self.notes.append(
                f"Chosen for this device: batch.max_tokens={config.batch.max_tokens} update_freq={config.update_freq}."
            )
        self.shapes: Sequence[Shape] = ()
        if config.batch.shapes is not None:
            self.shapes = run_shapes(lengths_of_run(self.train_set), config.batch, joined=self.task.joins_sides)
        mode = config.compile or (engine.compiles if engine.device.type == "cuda" else "off")
        self.compilation: Compilation | None = None
        if mode != "off":
            self.compilation = Compilation(self, mode)
        self.speed = Speed(self.model, config, device=engine.device)  # before sharding, because it counts the weights
        self.wrapped = engine.wrap(self.step)
        self._parameters = list(self.model.parameters())
        # The optimizer is built after wrapping, which may replace the parameters.
        self.optimizer = optimizers.build(config.optimizer, self.model)
        if config.lr_scales or config.layer_decay != 1:
            factors = rate_scales(self.model, config.lr_scales, layer_decay=config.layer_decay)
            scale_rates(self.optimizer, self.model, factors)
        self.average = WeightAverage(self.model, config.ema) if config.ema else None
        self.schedule = schedules.build(config.schedule, lr=config.optimizer.lr, max_steps=config.max_updates or None)
        self.streams: StreamState | None = None
        if config.batch.streams is not None:
            self.streams = StreamState(config.batch.streams, world=engine, update_freq=config.update_freq)
        self.checkpoints = Checkpoints(
            Path(config.save_dir),
            config=schema.to_dict(config),
            assets=self.task.assets(),
            metric=config.validation.metric,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
        )
        self.writer = Writer(asynchronous=config.checkpoint.asynchronous, report=lambda line: self.log.info(line))
        layers = [layer for _, layer in self.model.attention_layers()]
        self._random_layers = [(layer, layer.redraw_every) for layer in layers if layer.redraw_every]
        self._skips_on_device = can_skip(self.optimizer)
        self.stop = StopSignal(engine, hours=config.max_hours)
        self.skips: list[int] = []
        """The numbers, from 0, of the most recent consecutive updates that were skipped."""

    def _restore(self) -> None:
        """Restores state, weights and optimizer from the latest checkpoint, or else from `init_from`."""
        config, split = self.config, self.config.validation.split
        metric = f"{config.validation.metric} of {split}" if split else ""
        self.state = TrainState(metric=metric, corpus=fingerprint(self.train_sets))
        self._has_changes = False
        folder = latest_checkpoint(Path(config.save_dir))
        if folder is not None:
            self._begin(resume_from(self, folder))
        elif config.init_from:
            self._begin(start_from(self, config.init_from))
        if self.state.metric != metric:  # the best value so far is of a different metric
            self.state = self.state.replace(metric=metric, best=None, validations_without_best=0)
        self.saved_at = self.state.update
        self.loss_scale: LossScale | None = None
        if config.precision == "fp16":
            self.loss_scale = LossScale(device=self.engine.device, saved=self.state.loss_scale)
        self.interval = Interval(self.engine.device, loss_scale=self.loss_scale, before=self.state.interval)
        self._started = time.monotonic()

    def _begin(self, start: Start) -> None:
        """Loads weights, optimizer and state from `start`."""
        saved, source = start.checkpoint, str(start.checkpoint.folder)
        own, local = tensors_of(self.model), self.engine.local
        weights = {name: local(full, own[name]) if name in own else full for name, full in saved.model.tensors.items()}
        set_tensors(self.model, weights, source=source)
        set_optimizer_tensors(self.model, self.optimizer, saved.optimizer, source=source, local=local)
        if self.average is not None:
            averages = {name: local(full, own[name]) for name, full in saved.average.items() if name in own}
            self.average.load(self.model.state_dict() | averages)
        if self.streams is not None:
            self.streams.scatter(saved.streams)
        self.state = saved.state
        self.notes += start.notes
        self._has_changes = start.has_changes

    def fit(self) -> Result:
        """Trains until the configured end, early stopping, or a signal. Returns the result of the run."""
        config, start = self.config, self.state
        run = RunInfo(Path(config.save_dir), start.update, start.pending_validation, config.max_updates)
        sinks = config.log.all_sinks() if self.engine.is_first else ()
        with closing(Logger(sinks, run)) as self.log, self.stop.caught(self._last_update), self.writer:
            if self.engine.is_first:
                self.checkpoints.directory.mkdir(parents=True, exist_ok=True)
            self._planned = self.plan()
            for line in (*banner(self, self._planned), *self.notes):
                self.log.info(line)
            if start.pending_validation:
                self._validate()
            with self.speed.session(self.log.info, trace=self.checkpoints.directory if self.engine.is_first else None):
                while not self._is_done():
                    self._train_epoch()
            self.writer.wait()
            self._log_end(start)
            return Result(self.checkpoints.directory, self.state.update, self.state.best, self.stop.number)

    def _train_epoch(self) -> None:
        """Trains until the end of the epoch or of the run, or until an update was skipped."""
        config = self.config
        for update, micro_batches in self._updates():
            self.update(micro_batches)
            has_skipped = self._advance(update)
            if self._is_due(config.log.every):
                self._log_interval()
            if config.log.histograms and self._is_due(config.log.histograms):
                self._log_histograms()
            if config.validation.split and self._is_due(config.validation.every or None):
                self.save(pending_validation=True)
                self._validate()
            elif self._is_due(config.checkpoint.every) or self.stop:
                self.save()
            if has_skipped or self._is_done():
                break

    def _end_epoch(self) -> None:
        """Ends an epoch without an update, because its other examples are longer than the changed `batch` settings."""
        config, epoch = self.config, self.state.position.epoch
        self.log.info(f"Epoch {epoch} ends, because its remaining examples are too long for the batch settings.")
        self.state = self.state.replace(position=Position(epoch + 1))
        is_over = config.is_over(self.state)
        if is_over and self.state.interval:
            self._log_interval()
        if config.validation.split and (is_over or not config.validation.every):
            self.save(pending_validation=True)
            self._validate()
        elif is_over:
            self.save()

    def _is_done(self) -> bool:
        return bool(self.stop) or self.config.is_over(self.state)

    def plan(self) -> list[Update]:
        """Sets the training set to the examples of the epoch. Returns the plan of the remaining updates."""
        config, position = self.config, self.state.position
        self.train_set = self.task.epoch_examples(position.epoch, seed=config.seed)
        if self.streams is not None:
            plan = self.streams.plan(self.train_set.sizes_ND, config.batch, position=position)
        else:
            plan = epoch_plan(
                self.train_set.sizes_ND,
                config.batch,
                seed=config.seed,
                position=position,
                world=self.engine.size,
                rank=self.engine.rank,
                update_freq=config.update_freq,
                shapes=self.shapes,
            )
        if plan:
            plan[-1] = replace(plan[-1], position_after=Position(position.epoch + 1))
        return plan

    def _updates(self) -> Iterator[tuple[Update, list[Batch]]]:
        """Yields the remaining updates of the epoch with their micro-batches."""
        plan, self._planned = self._planned or self.plan(), []
        if not plan:
            self._end_epoch()
            return
        self._started = time.monotonic()
        workers = self.config.batch.workers
        loaded = load_updates(plan, self.train_set, self.task.collate, device=self.engine.device, workers=workers)
        yield from self.speed.loading(loaded, self.train_set.sizes_ND, joined=self.task.joins_sides)

    # One update

    def update(self, micro_batches: Sequence[Batch]) -> None:
        """Performs one update. If the loss or gradient is not finite, the state of the run does not change."""
        step, states = self.state.update, list(self.streams.states) if self.streams else []
        self.speed.begin(step + 1)
        weight, stats, norm = self.backward(micro_batches)
        values = torch.stack([norm.double(), *stats.values()])
        made, overflow = self.interval.judge(values)
        if self._skips_on_device:
            self._step(norm, skip=~made)
        elif bool(made):
            self._step(norm)
        else:
            self.interval.has_failed = not bool(overflow)
        if self.streams:
            self.streams.restore(states, unless=made)
        if self.loss_scale is not None:
            self.loss_scale.update(made=made, overflow=overflow)
        if self.average is not None:
            self.average.update(step, made=made)
        self.optimizer.zero_grad(set_to_none=True)
        self.interval.add(("norm", *stats), values, weight=weight)
        self.speed.end(step + 1)

    def backward(self, micro_batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor], Tensor]:
        """Computes the gradient of an update.

        Returns:
            (sum of the batches' weights over all processes, dict of the sums to report, gradient norm).
        """
        engine, scale = self.engine, None if self.loss_scale is None else self.loss_scale.scale
        seed_dropout(self.config.seed, self.state.update, engine.rank, device=engine.device)
        if not self.step.training:  # after a validation; switching all modules takes time
            self.wrapped.train()
        self.speed.enter("communication")
        (weight,) = engine.sums([float(sum(batch.weight for batch in micro_batches))])
        stats: dict[str, Any] = defaultdict(float)
        for index, batch in enumerate(micro_batches):
            with engine.gradient_sync(self.wrapped, enabled=index == len(micro_batches) - 1):
                state = self.streams.load(index, rows=len(batch.ids_B)) if self.streams else None
                self.speed.enter("forward")
                total, reported, state = self.wrapped(batch, state)
                if self.streams:
                    self.streams.store(index, state)
                total = total * (engine.size / weight)
                self.speed.enter("backward")
                (total if scale is None else total * scale).backward()
            for name, (value, its_weight) in reported.items():
                stats[name] += value
                stats[f"{name}{WEIGHT_SUFFIX}"] += its_weight
        names = sorted(stats)
        self.speed.enter("communication")
        summed = engine.sum(torch.stack([stats[name].double() for name in names])).unbind() if names else ()
        self.speed.enter("optimizer")
        norm = engine.full(nn.utils.get_total_norm(self._gradients()))
        return weight, dict(zip(names, summed, strict=True)), norm if scale is None else norm / scale

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _step(self, norm: Tensor, *, skip: Tensor | None = None) -> None:
        """Clips the gradient and steps the optimizer, unless `skip` is true. Does not synchronize with the device."""
        limit = self.config.clip_norm
        factor = torch.where(norm > limit, limit / norm.double(), 1.0) if limit else None
        if self.loss_scale is not None:
            factor = (1.0 if factor is None else factor) / self.loss_scale.scale
        gradients = list(map(local_part, self._gradients()))
        if gradients and factor is not None:
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        set_rate(self.optimizer, self.schedule.lr(self.state.update))
        if skip is not None:
            self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        self.optimizer.step()

    # Progress

    def _advance(self, update: Update) -> bool:
        """Counts an update, and reads the sums from the device if they are needed now.

        Returns:
            True if an update was skipped. The position is then after the skipped update, not after `update`.
        """
        self.interval.unread.append((self.state, update))
        self.state = self.state.replace(update=self.state.update + 1, position=update.position_after)
        self.stop.agree()
        config = self.config
        events = (config.log.every, config.validation.every or None, config.checkpoint.every)
        redrawn = [layer for layer, every in self._random_layers if self.state.update % every == 0]
        has_skipped = False
        if redrawn or self.interval.has_failed or self.stop or self._epoch_ended() or any(map(self._is_due, events)):
            has_skipped = self.read_sums()
        if redrawn and not has_skipped and self.interval.has_made_last:
            self._redraw(redrawn)
        if self.streams and self._epoch_ended():
            self.streams.clear()
        self.log.progress(self.state.update)
        return has_skipped

    def _last_update(self) -> int:
        """Returns the update after which the run stops if it receives a signal now."""
        return self.state.update + (not self.state.pending_validation)

    def _is_due(self, every: int | None) -> bool:
        """Returns True if an action is due that runs after every `every` updates. None: at the end of each epoch."""
        is_due = self._epoch_ended() if every is None else self.state.update % every == 0
        return is_due or self.config.is_over(self.state)

    def _redraw(self, layers: Sequence[Attention]) -> None:
        """Draws new random features, with the same random numbers in all processes."""
        seed = np.random.SeedSequence([self.config.seed, self.state.update - 1, 2**32 - 1]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        for layer in layers:
            layer.redraw(generator)

    def _epoch_ended(self) -> bool:
        return self.state.position.examples == 0

    def read_sums(self) -> bool:
        """Copies the sums from the device into the state. Between two log lines, nothing else waits for the device.

        Returns:
            True if an update was skipped. The state is then the state after the skipped update.

        Raises:
            NotFiniteError: If an update since the last call was not finite and must not be skipped.
        """
        read, before = self.interval.read(), self.state.interval
        if read is None:
            return False
        seconds = time.monotonic() - self._started
        self._started = time.monotonic()
        timed = {
            "interval": {**read.sums, "seconds": before.get("seconds", 0.0) + seconds, **self.speed.sums(before)},
            "seconds": self.state.seconds + seconds,
            "loss_scale": read.loss_scale,
        }
        if read.failed is None:
            self.state = self.state.replace(**timed)
            return False
        state, update = read.failed
        self.state = state.replace(**timed)
        skip_update(self, update)
        self.state = self.state.replace(update=state.update + 1, position=update.position_after)
        self.interval.forget_failure()
        return True

    # Log, validation, checkpoints

    def _log_interval(self) -> None:
        sums = self.state.interval
        if sums["updates"]:  # 0 if every update was skipped
            names, lr = reported_metrics(self.config, self.task), self.schedule.lr(self.state.update - 1)
            scale = self.state.loss_scale.get("scale")
            values: dict[str, float] = {
                "epoch": self.state.position.epoch - self._epoch_ended(),  # of this update, not of the next
                **interval_values(sums, names, unit=self.task.unit, lr=lr, loss_scale=scale),
                **self.speed.values(sums),
                "memory_gib": peak_memory_gib(self.engine.device),
                "minutes": self.state.seconds / 60,
            }
            self.log.metrics("train", self.state.update, values)
        watched = [pair for pair in self.model.attention_layers() if type(pair[1]).monitored is not Attention.monitored]
        with self.engine.unsharded(self.wrapped) if watched else nullcontext():
            for name, layer in watched:
                values = {f"{name}.{key}": value for key, value in layer.monitored().items()}
                self.log.scalars("attention", self.state.update, values)
        if self.compilation is not None:
            self.compilation.report()
        self.state = self.state.replace(interval={})
        self.interval = Interval(self.engine.device, loss_scale=self.loss_scale)
        self._started = time.monotonic()

    def _log_histograms(self) -> None:
        for name, weight in self.full_weights().items():
            self.log.histogram(f"weights/{name}", self.state.update, weight)

    def _log_end(self, start: TrainState) -> None:
        """Logs how the run ended. `start` is the state at the start of this session."""
        update = self.state.update
        if self.stop:
            pending = ", starting with its validation" if self.state.pending_validation else ""
            why = f"at max_hours={self.config.max_hours:g}" if self.stop.is_late else "by a signal"
            self.log.info(f"Stopped {why} after update {update:,}. The same command resumes the run{pending}.")
            return
        patience = self.config.validation.patience
        if patience and self.state.validations_without_best >= patience:
            self.log.info(f"Stopped by validation.patience={patience}: no new best {self.state.metric}.")
        self.log.info(f"Finished after update {update:,}. The models are in {self.config.save_dir}.")
        if self._has_changes and self.state.position == start.position:
            self.log.info("Training had already finished; changed settings had no effect.")

    def _validate(self) -> None:
        """Runs the pending validation. If a signal interrupts it, it stays pending until the run is resumed.

        Raises:
            NotFiniteError: If a metric is not finite.
        """
        with self.average.in_validation() if self.average else nullcontext():
            try:
                results = {
                    name: validate(
                        self.step, self.task, self.config, name=name, engine=self.engine, stop=self.stop.agree
                    )
                    for name in self.config.validation.named
                }
            except ValidationInterrupted:
                return
            if results:
                self._keep_validated(results)
            else:  # a validation was pending, but the resumed run does not validate
                self.state = self.state.replace(pending_validation=False)
        self.stop.agree()
        self._started = time.monotonic()

    def _keep_validated(self, results: Mapping[str, Validated]) -> None:
        """Logs the results of all validation sets, and saves the model if it is among the best.

        Raises:
            NotFiniteError: If a metric is not finite and must not be skipped.
        """
        deciding, metric = str(self.config.validation.split), self.config.validation.metric
        numbers = results[deciding].numbers
        if metric not in numbers:
            raise UserError(f"validation.metric={metric} was not computed.", f"Set it to one of {', '.join(numbers)}.")
        bad = next(((split, name) for split, result in results.items() for name in result.not_finite()), None)
        value, best = numbers[metric], self.state.best
        is_best = bad is None and metrics[metric]().is_better(value, best)
        validated = self.state.replace(
            best=value if is_best else best,
            validations_without_best=0 if is_best else self.state.validations_without_best + 1,
            pending_validation=False,
        )
        for name, result in results.items():
            kind, values = f"valid/{name}", dict(result.values)
            if name == deciding:
                kind = "valid"
                values |= {} if validated.best is None else {f"best_{metric}": validated.best}
                values |= {} if name == "valid" else {"split": name}
            self.log.metrics(kind, self.state.update, values)
        samples = self.config.log.samples if self.config.validation.decode else 0
        for number, output in enumerate(results[deciding].outputs[:samples]):
            shown = f"**source** {output.source}\n\n**output** {output.output}\n\n**reference** {output.references[0]}"
            self.log.text(f"sample {number}", self.state.update, shown)
        if bad is not None:
            skip_validation(self, *bad, value=results[bad[0]].numbers[bad[1]], after=validated)
        self.state = validated
        save_validated(self, None if bad else numbers)

    def save(self, *, pending_validation: bool = False) -> None:
        self.state = self.state.replace(pending_validation=pending_validation)
        if self.engine.is_first and isinstance(self.train_set, MixedExamples):
            read = self.train_set.examples_read(self.config.batch, self.state.position, self.shapes)
            self.log.metrics("examples", self.state.update, read)
        save_checkpoint(self)
        self.saved_at = self.state.update
        self.engine.barrier()
        self._started = time.monotonic()

    def full_weights(self) -> Tensors:
        """Returns the full (unsharded) weights in all processes."""
        return {name: self.engine.full(tensor) for name, tensor in tensors_of(self.model).items()}
