"""Validation: the loss of a split, and, if asked, what the model makes of it."""

from collections.abc import Callable

import numpy as np
import torch

from seqtk.data.loader import load_batches
from seqtk.data.plan import ordered_batches, stream_rows
from seqtk.metrics import Evaluation, Output, metrics
from seqtk.tasks import Task
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import World
from seqtk.training.stream_state import StreamState
from seqtk.training.train_step import Objective

NOTHING = np.empty(0, dtype=np.int64)


def reported_metrics(config: TrainConfig, task: Task) -> list[str]:
    """The names of the metrics that a validation reports: those of the config or of the task, and the one compared."""
    names = task.metrics if config.validation.metrics is None else config.validation.metrics
    return list(dict.fromkeys([*names, config.validation.metric]))


class GivenUpError(Exception):
    """A validation was asked to stop; it has no figures."""


@torch.no_grad()
def validate(
    objective: Objective,
    task: Task,
    config: TrainConfig,
    *,
    world: World,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float | str], list[Output]]:
    """The figures of the validation split (losses in nats per target), each with its signature, and the outputs.

    Every example counts exactly once, however many processes share the work. Every process has the outputs of all.
    With `batch.streams` the split is read in as many, each from an empty memory. Before each batch `stop` is asked, by
    all processes as often, so that they may agree on it; if it says so, this raises GivenUpError.
    """
    objective.eval()
    dataset = task.dataset(config.validation.split)
    streams = StreamState(config.batch.streams, world=world)
    if config.batch.streams is None:
        every = ordered_batches(dataset.sizes_ND, config.batch)
        turns = [every[first : first + world.size][world.rank :] for first in range(0, len(every), world.size)]
        batches = [turn[0] if turn else NOTHING for turn in turns]
    else:
        (own,) = streams.parts
        batches = [rows[own] for rows in stream_rows(len(dataset), config.batch.streams)]
    sums: dict[str, tuple[float, float]] = {}
    targets = 0
    outputs: list[Output] = []
    loaded = load_batches(
        [indices for indices in batches if len(indices)],
        dataset,
        task.collate,
        device=world.device,
        workers=config.batch.workers,
    )
    for indices in batches:
        if stop():
            raise GivenUpError
        if not len(indices):  # the others' turn
            continue
        batch = next(loaded)
        _, reported, after = objective(batch, streams.load(0, rows=len(batch.ids_B)))
        streams.store(0, after)
        targets += batch.weight
        for name, (value, weight) in reported.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + float(value), before[1] + float(weight)
        if config.validation.decode and task.has_outputs():
            outputs += task.outputs(objective.model, batch, dataset, config.validation.search)
    gathered = [output for part in world.gather(outputs) for output in part]
    gathered.sort(key=lambda output: output.index)
    (all_targets,) = world.sums([float(targets)])
    text = task.text_size(config.validation.split, all_targets)
    scores = metrics.compute(reported_metrics(config, task), Evaluation(_totals(world, sums), gathered, text))
    figures: dict[str, float | str] = {name: score.value for name, score in scores.items()}
    figures |= {f"{name}_signature": score.signature for name, score in scores.items() if score.signature}
    return figures, gathered


def _totals(world: World, sums: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The sums over all processes."""
    # A process without a batch has no names: take them from all.
    names = sorted({name for part in world.gather(list(sums)) for name in part})
    own = [sums.get(name, (0.0, 0.0)) for name in names]
    totals, weights = world.sums([total for total, _ in own]), world.sums([weight for _, weight in own])
    return dict(zip(names, zip(totals, weights, strict=True), strict=True))
