"""Validation: the loss of a split, and, if asked, what the model makes of it."""

import math
from collections.abc import Callable

import numpy as np
import torch

from seqtk.data.loader import load_batches
from seqtk.data.plan import ordered_batches, stream_rows
from seqtk.tasks import Output, Task
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import World
from seqtk.training.stream_state import Carried
from seqtk.training.train_step import Objective

NOTHING = np.empty(0, dtype=np.int64)
HIGHER_IS_BETTER = {"bleu", "chrf", "accuracy"}


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of `metric` is a better one."""
    return metric in HIGHER_IS_BETTER


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
    carried = Carried(config.batch.streams, world=world)
    if config.batch.streams is None:
        every = ordered_batches(dataset.sizes_ND, config.batch)
        turns = [every[first : first + world.size][world.rank :] for first in range(0, len(every), world.size)]
        batches = [turn[0] if turn else NOTHING for turn in turns]
    else:
        (own,) = carried.parts
        batches = [rows[own] for rows in stream_rows(len(dataset), config.batch.streams)]
    sums: dict[str, float] = {"weight": 0.0}
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
        _, reported, after = objective(batch, carried.into(0, rows=len(batch.ids_B)))
        carried.out_of(0, after)
        sums["weight"] += batch.weight
        for name, value in reported.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if config.validation.decode:
            outputs += task.decode(objective.model, batch, dataset, config.validation.search)
    totals = _totals(world, sums)
    figures = {**means(totals), **task.figures(config.validation.split, totals)}
    gathered = [output for part in world.gather(outputs) for output in part]
    gathered.sort(key=lambda output: output.index)
    if gathered:
        for name, score in task.scores(gathered).items():
            figures[name] = score.value
            figures[f"{name}_signature"] = score.signature
    return figures, gathered


def _totals(world: World, sums: dict[str, float]) -> dict[str, float]:
    """The sums over all processes."""
    # A process without a batch has no names: take them from all.
    names = sorted({name for part in world.gather(list(sums)) for name in part})
    return dict(zip(names, world.sums([sums.get(name, 0.0) for name in names]), strict=True))


def means(totals: dict[str, float]) -> dict[str, float | str]:
    """What each target costs in the mean, from sums over all of them and their number, `weight`."""
    weight = max(totals["weight"], 1.0)
    figures: dict[str, float | str] = {name: total / weight for name, total in totals.items() if name != "weight"}
    if "nll" in totals:
        figures["ppl"] = math.exp(min(totals["nll"] / weight, 700.0))
    return figures
