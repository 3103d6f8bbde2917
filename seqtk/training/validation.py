"""Validation: the metrics of a split, from its loss and, if configured, from the decoded outputs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
from torch import Tensor

from seqtk.data.batch import Dataset
from seqtk.data.plan import ordered_batches, stream_rows, stream_slices
from seqtk.metrics import Evaluation, Output, metrics
from seqtk.tasks import Task
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import Engine, TrainStep

EMPTY = np.empty(0, dtype=np.int64)


def reported_metrics(config: TrainConfig, task: Task) -> list[str]:
    """Returns the metrics to report (the config's, or else the task's), and the one that selects the best model."""
    names = task.metrics if config.validation.metrics is None else config.validation.metrics
    return list(dict.fromkeys([*names, config.validation.metric]))


class Validated(NamedTuple):
    """The result of a validation."""

    values: dict[str, float | str]
    """Each metric, and its signature; losses in nats per target."""
    outputs: list[Output]
    """The outputs of all processes."""

    @property
    def numbers(self) -> dict[str, float]:
        """The values without signatures."""
        return {name: float(value) for name, value in self.values.items() if not isinstance(value, str)}

    def not_finite(self) -> list[str]:
        """The metrics that are not finite numbers."""
        return [name for name, value in self.numbers.items() if not math.isfinite(value)]


class ValidationInterrupted(Exception):  # noqa: N818 (not an error)
    """A validation was stopped; it has no result."""


@contextmanager
def reading_set(task: Task, config: TrainConfig, name: str) -> Iterator[str]:
    """Makes the task read the data of a validation set while the block runs. Yields its split.

    Raises:
        UserError: If its data cannot be read, or do not suit the task's vocabularies.
    """
    chosen = config.validation.named[name]
    with nullcontext() if chosen.data is None else task.reading(chosen.data):
        yield chosen.split


def validation_sets(task: Task, config: TrainConfig) -> dict[str, Dataset]:
    """Returns the examples of each validation set by its name. Raises as `reading_set` does."""
    found: dict[str, Dataset] = {}
    for name in config.validation.named:
        with reading_set(task, config, name) as split:
            found[name] = task.dataset(split)
    return found


def validate(
    step: TrainStep,
    task: Task,
    config: TrainConfig,
    *,
    engine: Engine,
    name: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Validated:
    """Evaluates a validation set; every example counts exactly once, however many processes share the work.

    With `batch.streams` it is read as that many streams, each from an empty state.

    Args:
        step: The model and its criterion.
        task: Reads, decodes and scores the examples.
        config: The run's config.
        engine: The processes that share the work.
        name: The name of the set. None: the one that chooses the best model.
        stop: Called before each batch by all processes, so that they can agree; True stops the validation.

    Raises:
        ValidationInterrupted: If `stop` returned True.
    """
    step.eval()
    name = name or config.validation.split
    assert name is not None, "there is no validation"
    with reading_set(task, config, name) as split:
        return _validate(step, task, config, engine=engine, split=split, stop=stop)


def _validate(
    step: TrainStep, task: Task, config: TrainConfig, *, engine: Engine, split: str, stop: Callable[[], bool]
) -> Validated:
    dataset, streams = task.dataset(split), config.batch.streams
    if streams is None:
        every = ordered_batches(dataset.sizes_ND, config.batch)
        turns = [every[first : first + engine.size][engine.rank :] for first in range(0, len(every), engine.size)]
        batches = [turn[0] if turn else EMPTY for turn in turns]
    else:
        (own,) = stream_slices(streams, world=engine.size, rank=engine.rank)
        batches = [rows[own] for rows in stream_rows(len(dataset), streams)]

    def stop_if_asked() -> None:
        if stop():
            raise ValidationInterrupted

    with engine.unsharded(step):
        sums, targets, outputs = task.totals(
            lambda batch, state: step(batch, state)[1:],
            dataset,
            batches,
            model=step.model,
            search=config.validation.search if config.validation.decode else None,
            device=engine.device,
            workers=config.batch.workers,
            continuous=streams is not None,
            before_each=stop_if_asked,
        )
    gathered = [output for part in engine.gather(outputs) for output in part]
    gathered.sort(key=lambda output: output.index)
    (all_targets,) = engine.sums([float(targets)])
    text = task.text_size(split, all_targets)
    scores = metrics.compute(reported_metrics(config, task), Evaluation(_totals(engine, sums), gathered, text))
    values: dict[str, float | str] = {name: score.value for name, score in scores.items()}
    values |= {f"{name}_signature": score.signature for name, score in scores.items() if score.signature}
    return Validated(values, gathered)


def _totals(engine: Engine, sums: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """Returns the sums over all processes; one without a batch has no names, so they are taken from all."""
    names = sorted({name for part in engine.gather(list(sums)) for name in part})
    own = [(float(sums[name][0]), float(sums[name][1])) if name in sums else (0.0, 0.0) for name in names]
    totals, weights = engine.sums([total for total, _ in own]), engine.sums([weight for _, weight in own])
    return dict(zip(names, zip(totals, weights, strict=True), strict=True))
