"""Dry runs. A dry run prints the model, the batches and the memory of an update, and writes nothing."""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from seqtk.checkpoint.module_table import aligned, by_module
from seqtk.data.loader import load_updates
from seqtk.data.plan import Position, Update, padding_share, positions, real_batches
from seqtk.optim import rate_scales
from seqtk.training.auto_batch import saved_bytes
from seqtk.training.checks import banner, prepared
from seqtk.training.compiling import uncompiled
from seqtk.training.config import TrainConfig
from seqtk.training.interval import Interval
from seqtk.training.parallel import local_part
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validation_sets
from seqtk.utils.errors import how_many
from seqtk.utils.memory import peak_memory_gib


def dry_run(config: TrainConfig) -> Iterator[str]:
    """Builds the run of `config` and performs one update with its largest batch. Writes nothing.

    Yields:
        The lines to print. Only the first process yields lines.

    Raises:
        UserError: If the config or the data are invalid, or if memory runs out.
    """
    with prepared(config) as engine:
        run = Trainer(config, engine=engine)
        plan = run.plan()
        while not plan:  # the batch settings changed, and no usable example is left in the epoch
            run.state = run.state.replace(position=Position(run.state.position.epoch + 1))
            plan = run.plan()
        for line in itertools.chain(
            banner(run, plan),
            run.notes,
            _modules(run),
            _update(run, plan),
            [f"Dry run: nothing was written to {run.config.save_dir}."],
        ):
            if engine.is_first:
                yield line


def _modules(run: Trainer) -> Iterator[str]:
    """Yields a line for each module: the number of parameters, frozen tensors, and the factor of the learning rate."""
    config, parameters = run.config, dict(run.model.named_parameters())
    factors = rate_scales(run.model, config.lr_scales, layer_decay=config.layer_decay)
    rows = []
    for module, names in by_module(parameters).items():
        count = sum(parameters[name].numel() for name in names)
        trained = [name for name in names if parameters[name].requires_grad]
        rates = sorted({factors[name] for name in trained})
        notes = (
            ["frozen" if not trained else f"{len(names) - len(trained)} frozen"] if len(trained) < len(names) else []
        )
        if rates and rates != [1.0]:
            notes.append("lr × " + " to ".join(f"{rate:.3g}" for rate in dict.fromkeys((rates[0], rates[-1]))))
        rows.append((module, how_many(len(names), "tensor"), f"{count:,}", ", ".join(notes)))
    yield "Parameters by module:"
    yield from aligned(rows, left=1)


def _update(run: Trainer, plan: Sequence[Update]) -> Iterator[str]:
    """Yields lines about the batches of an epoch, and the time and memory of an update with the largest batch."""
    config, engine, sizes_ND = run.config, run.engine, run.train_set.sizes_ND
    if not real_batches(plan):  # there are fewer batches than processes, and this process only takes part
        plan = [replace(plan[0], indices=(np.array([plan[0].stand_in]),), shapes=plan[0].shapes[:1])]
    batches, joined = real_batches(plan), run.task.joins_sides
    cells = positions(plan, sizes_ND, joined=joined)
    rows, padding = [len(indices) for indices, _ in batches], padding_share(plan, sizes_ND, joined=joined)
    share = f"{config.update_freq} × {engine.size} micro-batches" if config.update_freq * engine.size > 1 else "1 batch"
    yield f"Batches: {how_many(len(plan), 'update')} to the end of epoch {run.state.position.epoch}, each of {share}."
    yield f"  {min(rows):,} to {max(rows):,} rows, {np.mean(rows):,.1f} on average; {padding:.1%} padding."
    for name, dataset in validation_sets(run.task, config).items():
        yield f"  validation on {name}: {how_many(len(dataset), 'example')}."
    indices, shape = batches[int(np.argmax(cells))]
    largest = Update((indices,), plan[-1].position_after, () if shape is None else (shape,))
    ((_, micro_batches),) = load_updates([largest], run.train_set, run.task.collate, device=engine.device)
    yield "The largest batch:"
    tensors = {name: value for name, value in vars(micro_batches[0]).items() if isinstance(value, Tensor)}
    yield from aligned(
        [(name, str(list(t.shape)), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()], left=3
    )
    started = time.monotonic()
    run.interval = Interval(engine.device, loss_scale=run.loss_scale)  # without the sums of earlier updates
    with uncompiled(), saved_bytes(run.model) as saved:
        run.update(micro_batches)
    run.read_sums()
    sums, seconds = run.state.interval, time.monotonic() - started
    if not sums["updates"]:
        yield "The loss or gradient of this batch is not finite."
    else:
        loss = sums["loss"] / sums["weight"] if "loss" in sums else float("nan")
        yield f"An update with this batch took {seconds:.2f} s: loss {loss:.4g}, gnorm {sums['norm']:.3g}."
    yield from _memory(run, activations=sum(saved.values()))


def _memory(run: Trainer, *, activations: int) -> Iterator[str]:
    """Yields lines with the memory that an update requires in this process: weights, gradients, and so on."""
    weights = [*run.model.parameters(), *run.model.buffers()]
    states = [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    parts = {
        "weights": _bytes(weights),
        "gradients": _bytes(parameter for parameter in run.model.parameters() if parameter.requires_grad),
        "optimizer state": _bytes(states),
        "average of the weights": _bytes(run.average.tensors.values()) if run.average else 0,
        "saved for the backward pass": activations,
    }
    yield "Memory of an update (estimate, without temporary tensors):"
    rows = [*((name, size) for name, size in parts.items() if size), ("sum", sum(parts.values()))]
    yield from aligned([(name, f"{size / 2**20:,.1f} MiB") for name, size in rows], left=1)
    yield f"  Peak of this process: {peak_memory_gib(run.engine.device):.2f} GiB."


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in map(local_part, tensors))
