"""The one training loop.

An update: add up the weights of its micro-batches over all processes, then run each backward scaled so that gradients
are those of (sum of losses) / (sum of weights), reduce them on the last, clip, step. So one update is the same however
its batch is cut. Dropout and batch order are functions of (seed, update, rank) and (seed, epoch).
"""

import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from seqtk.checkpoint.run_state import Checkpoints, TrainState
from seqtk.criterions import criterions
from seqtk.criterions.base import Stats
from seqtk.data.batch import Batch
from seqtk.data.loader import load_updates
from seqtk.data.plan import Position, epoch_plan
from seqtk.metrics import Evaluation, metrics
from seqtk.optim import optimizers, schedules, set_rate
from seqtk.tasks import tasks
from seqtk.training.checks import check_data, introduction
from seqtk.training.config import TrainConfig
from seqtk.training.logging import Logger
from seqtk.training.parallel import World
from seqtk.training.resume import Difference, listed
from seqtk.training.stream_state import StreamState
from seqtk.training.train_step import Objective
from seqtk.training.validation import GivenUpError, reported_metrics, validate
from seqtk.utils.errors import UserError
from seqtk.utils.memory import peak_memory_gib

OF_WEIGHTS = "/weight"
"""Ends the name of the sum of a statistic's weights, beside the statistic's own."""


class NotFiniteError(UserError):
    """The gradient of an update is not finite: which, where first, and of which examples."""


class Trainer:
    """A run: everything built from its config, and resumed from its save_dir if that holds a checkpoint."""

    def __init__(self, config: TrainConfig, *, world: World) -> None:
        config.check()
        self.config, self.world = config, world
        self.task = tasks.build(config.task)
        self.train_set = self.task.training_set(1)
        torch.manual_seed(config.seed)
        self.model = self.task.model(config.model).to(world.device)
        self.optimizer = optimizers.build(config.optimizer, self.model)
        self.schedule = schedules.build(config.schedule, lr=config.optimizer.lr, max_steps=config.max_updates or None)
        criterion = criterions.build(config.criterion)
        self.objective = Objective(self.model, criterion, bf16=config.precision == "bf16")
        self.wrapped = world.wrap(self.objective)
        self.checkpoints = Checkpoints(config)
        self.state = TrainState()
        self.changed: list[Difference] = []
        self.streams = StreamState(config.batch.streams, world=world, update_freq=config.update_freq)
        check_data(config, task=self.task, model=self.model, criterion=criterion, train_set=self.train_set)
        folder = self.checkpoints.latest()
        if folder is not None:
            self.state, self.changed = self.checkpoints.restore(folder, self.model, self.optimizer, self.task)
            self.streams.scatter(self.checkpoints.carried(folder))
        measure = f"{config.validation.metric} of {config.validation.split}"
        if self.state.metric != measure:  # another measure knows no best yet
            self.state = self.state.after(metric=measure, best=None, validations_without_best=0)
        self._saved_at = self.state.update
        self._noted_signal = 0
        self._stop_signal = 0  # what all processes have agreed on

    def fit(self) -> int:
        """Train until the config says stop. Returns the number of the signal that ended it before, or 0."""
        config, state = self.config, self.state
        with (
            Logger(
                config.save_dir,
                world=self.world,
                tensorboard=config.log.tensorboard,
                resumed_at=state.update,
                total=config.max_updates,
                validation_owed=state.validation_owed,
            ) as log,
            self._signals_noted(),
        ):
            for line in introduction(config, model=self.model, train_set=self.train_set, world=self.world):
                log.say(line)
            if state.update:
                log.say(f"Going on from update {state.update:,}, epoch {state.position.epoch}.")
            if self.changed:
                log.say(f"Other than before: {listed(self.changed)}.")
            if state.validation_owed:
                self._validate(log)
            while not (self._stop_signal or self._is_over()):
                self._epoch(log)
            if self._stop_signal:
                owed = " with its validation" if self.state.validation_owed else ""
                log.say(
                    f"Stopped by a signal after update {self.state.update:,}; the same command goes on from it{owed}."
                )
                return self._stop_signal
            log.say(f"Finished after update {self.state.update:,}; the models are in {config.save_dir}.")
            if self.changed and self.state.update == state.update:
                log.say("It was at its end before: nothing was trained with what is other now. Set another save_dir.")
        return 0

    def _epoch(self, log: Logger) -> None:
        """What is left of this epoch, or as much of it as there is time for."""
        config = self.config
        self.train_set = self.task.training_set(self.state.position.epoch)
        plan = epoch_plan(
            self.train_set.sizes_ND,
            config.batch,
            seed=config.seed,
            position=self.state.position,
            world=self.world.size,
            rank=self.world.rank,
            update_freq=config.update_freq,
        )
        if not plan:
            raise UserError(f"There is no training example in {config.task.data}.")
        updates = load_updates(
            plan, self.train_set, self.task.collate, device=self.world.device, workers=config.batch.workers
        )
        started = time.monotonic()
        for number, (update, micro_batches) in enumerate(updates, start=1):
            try:
                figures = self.update(micro_batches)
            except NotFiniteError as error:
                raise UserError(*str(error).splitlines(), self._rescued(log)) from None
            seconds = time.monotonic() - started
            last = number == len(plan)
            position = update.position_after
            if last:
                position = Position(self.state.position.epoch + 1, 0)
                self.streams.clear()
            interval = dict(self.state.interval)
            for name, value in {**figures, "seconds": seconds, "updates": 1}.items():
                interval[name] = interval.get(name, 0.0) + value
            self.state = self.state.after(
                update=self.state.update + 1,
                position=position,
                seconds=self.state.seconds + seconds,
                interval=interval,
            )
            log.progress(self.state.update)
            self._after_update(log, epoch_ended=last)
            if self._stop_signal or self._is_over():
                return
            started = time.monotonic()

    def update(self, micro_batches: Sequence[Batch]) -> dict[str, float]:
        """One update of the weights. Returns sums over all processes: of each statistic and of its weights, and
        `weight` and `norm`.

        Raises NotFiniteError, before anything changes that a checkpoint holds, if the gradient is not finite.
        """
        handed = list(self.streams.states)
        step = self.state.update
        seed = np.random.SeedSequence([self.config.seed, step, self.world.rank]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        self.wrapped.train()
        (weight,) = self.world.sums([float(sum(batch.weight for batch in micro_batches))])
        stats: Stats = {}
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with self.world.gradient_sync(self.wrapped, enabled=is_last):
                carried = self.streams.load(index, rows=len(batch.ids_B))
                total, reported, carried = self.wrapped(batch, carried)
                self.streams.store(index, carried)
                (total * (self.world.size / weight)).backward()
            for name, (value, its_weight) in reported.items():
                before = stats.get(name, (0.0, 0.0))
                stats[name] = before[0] + value, before[1] + its_weight
        norm = float(nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None))
        if not math.isfinite(norm):
            self.streams.states = handed
            raise self._not_finite(micro_batches)
        if self.config.clip_norm and norm > self.config.clip_norm:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.config.clip_norm / norm)
        set_rate(self.optimizer, self.schedule.lr(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for_all = np.random.SeedSequence([self.config.seed, step, 2**32 - 1]).generate_state(1)[0]  # of no rank
        generator = torch.Generator().manual_seed(int(for_all))
        for _, layer in self.model.attention_layers():
            layer.after_update(step + 1, generator)
        sums = {name: float(pair[0]) for name, pair in stats.items()}
        sums |= {f"{name}{OF_WEIGHTS}": float(pair[1]) for name, pair in stats.items()}
        *totals, noted = self.world.sums([*(sums[name] for name in sorted(sums)), float(self._noted_signal)])
        self._stop_if(noted)
        return {**dict(zip(sorted(sums), totals, strict=True)), "weight": weight, "norm": norm}

    def _after_update(self, log: Logger, *, epoch_ended: bool) -> None:
        config, update = self.config, self.state.update
        over = self._is_over()
        if update % config.log.every == 0 or over:
            self._log_interval(log)
        every = config.validation.every
        if (update % every == 0 if every else epoch_ended) or over:
            self.state = self.state.after(validation_owed=True)
            self._save(log)
            self._validate(log)
        elif update % config.checkpoint.every == 0 or self._stop_signal:
            self._save(log)

    def _log_interval(self, log: Logger) -> None:
        sums = self.state.interval
        weight, count = sums["weight"], sums["updates"]
        others = ("weight", "updates", "seconds", "norm")
        names = [name for name in sorted(sums) if name not in others and not name.endswith(OF_WEIGHTS)]
        stats = {name: (sums[name], sums.get(f"{name}{OF_WEIGHTS}", weight)) for name in names}
        scores = metrics.compute(reported_metrics(self.config, self.task), Evaluation(stats))
        figures = {name: score.value for name, score in scores.items()}
        log.figures(
            "train",
            self.state.update,
            {
                "epoch": self.state.position.epoch
                - (self.state.position.examples == 0),  # of this update, not the next
                **figures,
                "lr": self.schedule.lr(self.state.update - 1),
                "gnorm": sums["norm"] / count,
                "tokens_per_second": weight / max(sums["seconds"], 1e-9),
                "tokens_per_update": weight / count,
                "memory_gib": peak_memory_gib(self.world.device),
                "minutes": self.state.seconds / 60,
            },
        )
        for name, layer in self.model.attention_layers():
            log.scalars("attention", self.state.update, {f"{name}.{k}": v for k, v in layer.monitored().items()})
        self.state = self.state.after(interval={})

    def _validate(self, log: Logger) -> None:
        """Make the validation that is owed, or leave it to the run that goes on from here if a signal comes first."""
        config = self.config
        try:
            figures, outputs = validate(
                self.objective, self.task, config, world=self.world, stop=self._all_have_to_stop
            )
        except GivenUpError:
            return
        metric = config.validation.metric
        if metric not in figures:
            raise UserError(f"validation.metric={metric} was not computed; only {', '.join(figures)} were.")
        value, best = float(figures[metric]), self.state.best
        is_best = math.isfinite(value) and metrics[metric]().is_better(value, best)
        self.state = self.state.after(
            best=value if is_best else best,
            validations_without_best=0 if is_best else self.state.validations_without_best + 1,
            validation_owed=False,
        )
        best_figure = {} if self.state.best is None else {f"best_{metric}": self.state.best}
        log.figures("valid", self.state.update, {**figures, **best_figure})
        for number, output in enumerate(outputs[: config.log.samples]):
            shown = f"**source** {output.source}\n\n**output** {output.output}\n\n**reference** {output.references[0]}"
            log.text(f"sample {number}", self.state.update, shown)
        if self.world.is_first:
            numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
            self.checkpoints.export_best(
                self.model, self.state, self.task, numbers, higher=metrics[metric].higher_is_better
            )
            self.checkpoints.save_state(self.state)
        self._all_have_to_stop()

    def _save(self, log: Logger) -> None:
        carried = self.streams.gather()
        if self.world.is_first:
            aside = self.checkpoints.put_aside(later_than=self._saved_at)
            if aside is not None:
                log.say(f"What an abandoned run had saved after update {self._saved_at:,} is in {aside} now.")
            self.checkpoints.save(self.model, self.optimizer, self.state, self.task, carried=carried)
        self._saved_at = self.state.update
        self.world.barrier()

    def _all_have_to_stop(self) -> bool:
        """Whether a process has noted a signal; all of them have to ask, and agree."""
        self._stop_if(*self.world.sums([float(self._noted_signal)]))
        return bool(self._stop_signal)

    def _stop_if(self, noted: float) -> None:
        if noted and not self._stop_signal:
            self._stop_signal = self._noted_signal or signal.SIGTERM

    def _is_over(self) -> bool:
        config, state = self.config, self.state
        return bool(
            (config.max_updates and state.update >= config.max_updates)
            or (config.max_epochs and state.position.epoch > config.max_epochs)
            or (config.validation.patience and state.validations_without_best >= config.validation.patience)
        )

    def _rescued(self, log: Logger) -> str:
        """What there is to go on from after an update that could not be made: the state before it, if that is good."""
        good = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        if good and self.state.update != self._saved_at:
            self._save(log)
        saved = f"The last checkpoint is of update {self._saved_at:,}" if self._saved_at else "There is no checkpoint"
        return f"{saved}; lower optimizer.lr or set clip_norm."

    def _not_finite(self, micro_batches: Sequence[Batch]) -> NotFiniteError:
        names = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
        ] or ["the sum of its squares"]
        examples = [str(index) for batch in micro_batches for index in batch.ids_B.tolist()]
        return NotFiniteError(
            f"The gradient of update {self.state.update + 1} is not finite, first in {names[0]}.",
            f"Its training examples: {', '.join(examples[:20])}{', …' if len(examples) > 20 else ''}.",
        )

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the run after this update, with a checkpoint; the second at once.

        A validation is given up, whose update is made and saved.
        """

        def note(number: int, _: Any) -> None:
            if self._noted_signal:
                raise KeyboardInterrupt(number)
            self._noted_signal = number
            if self.world.is_first:
                last = self.state.update + (not self.state.validation_owed)
                line = f"Stopping after update {last:,}; once more to stop at once.\n"
                os.write(2, f"{chr(10) if os.isatty(2) else ''}{line}".encode())  # print may be what was interrupted

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
