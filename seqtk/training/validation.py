"""Validation: computes the metrics of validation sets from the loss and, if configured, from decoded outputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import ceil, isfinite
from typing import NamedTuple

import numpy as np
from torch import Tensor

from seqtk.data.batch import Dataset
from seqtk.data.plan import ordered_batches
from seqtk.data.sources.base import MissingSplitError
from seqtk.data.streams import stream_rows, stream_slices
from seqtk.metrics import Evaluation, Output, metrics
from seqtk.tasks import Task
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import Engine, TrainStep
from seqtk.utils.errors import UserError

EMPTY = np.empty(0, dtype=np.int64)


def reported_metrics(config: TrainConfig, task: Task) -> list[str]:
    """Returns the names of metrics to report: `validation.metrics`, or the task's metrics, and `validation.metric`."""
    names = task.metrics if config.validation.metrics is None else config.validation.metrics
    return list(dict.fromkeys([*names, config.validation.metric]))


class Validated(NamedTuple):
    """The result of a validation."""

    values: dict[str, float | str]
    """Name of a metric → its value; for some metrics, also their signature. Losses are in nats per target."""
    outputs: list[Output]
    """The outputs of all processes."""

    @property
    def numbers(self) -> dict[str, float]:
        """The values of the metrics, without signatures."""
        return {name: float(value) for name, value in self.values.items() if not isinstance(value, str)}

    def not_finite(self) -> list[str]:
        """Returns the names of the metrics that are not finite."""
        return [name for name, value in self.numbers.items() if not isfinite(value)]


class ValidationInterrupted(Exception):  # noqa: N818 (not an error)
    """Raised if a validation is stopped before it has a result."""


@contextmanager
def reading_set(task: Task, config: TrainConfig, name: str) -> Iterator[str]:
    """Context manager in which the task reads the data of a validation set. Yields the name of the split.

    Raises:
        UserError: If the data cannot be read, or do not match the task's vocabularies.
    """
    chosen = config.validation.named[name]
    with nullcontext() if chosen.data is None else task.reading(chosen.data):
        yield chosen.split


def validation_sets(task: Task, config: TrainConfig) -> dict[str, Dataset]:
    """Returns a dict: name of a validation set → examples. Raises the errors of `reading_set` and `Task.dataset`."""
    found: dict[str, Dataset] = {}
    for name in config.validation.named:
        try:
            with reading_set(task, config, name) as split:
                found[name] = task.dataset(split)
        except MissingSplitError as error:
            if name != config.validation.split:
                raise
            raise UserError(str(error), "To train without validation, set validation.split=null.") from error
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
    """Computes the metrics of a validation set. Each example is evaluated once, by one of the processes.

    With `batch.streams`, the set is split into this number of streams. Each starts with an empty recurrent state.

    Args:
        step: The train step, which contains the model and the criterion.
        task: The task, which reads, decodes and scores the examples.
        config: The run's config.
        engine: The engine of the run.
        name: The name of the set. None: the set that selects the best model.
        stop: Called by all processes before each batch. If it returns True, the validation is stopped. Collective.

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
        all_batches = ordered_batches(dataset.sizes_ND, config.batch)
        batches = all_batches[engine.rank :: engine.size]
        batches += [EMPTY] * (ceil(len(all_batches) / engine.size) - len(batches))  # as many as the first process
    else:
        (part,) = stream_slices(streams, world=engine.size, rank=engine.rank)
        batches = [rows[part] for rows in stream_rows(len(dataset), streams)]

    def raise_if_stopped() -> None:
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
            before_each=raise_if_stopped,
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
    """Returns the sums over all processes. Gathers the names first, because a process without a batch has no sums."""
    names = sorted({name for part in engine.gather(list(sums)) for name in part})
    pairs = [(float(sums[name][0]), float(sums[name][1])) if name in sums else (0.0, 0.0) for name in names]
    totals, weights = engine.sums([total for total, _ in pairs]), engine.sums([weight for _, weight in pairs])
    return dict(zip(names, zip(totals, weights, strict=True), strict=True))
