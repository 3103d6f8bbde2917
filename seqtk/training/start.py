"""Loads the initial state of a run: from its last checkpoint, or from a different run (`init_from`, `reset`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqtk.checkpoint import model_file
from seqtk.checkpoint.restore import Checkpoint, load_checkpoint, load_latest
from seqtk.checkpoint.run_state import Empty, TrainState, latest_checkpoint
from seqtk.checkpoint.transfer import Fate, transfer
from seqtk.data.mixing import lengths_of_run
from seqtk.data.plan import BatchingConfig, Stretch, run_shapes
from seqtk.training.config import PARTS, TrainConfig
from seqtk.training.resume import config_diff, differences, format_list, rate_change, saved_config
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.training.trainer import Trainer

KEPT_BY = {
    "schedule": ("update", "interval", "seconds"),
    "data": ("position",),
    "best": ("best", "validations_without_best"),
}
"""Part of the state → fields of `TrainState`. Parts in `reset` are not kept. `optimizer` is stored as tensors."""
NEEDS = {"optimizer": ("optimizer",), "data": ("seed", "task", "batch")}
"""Part of the state → sections of the config that must not differ if the part is kept."""


@dataclass(frozen=True)
class Start:
    """The initial state of a run."""

    checkpoint: Checkpoint
    """The weights and the state from which the run starts."""
    notes: list[str]
    """Lines for the log about what was loaded."""
    has_changes: bool = False
    """True if settings differ from the checkpoint's settings."""


def resume_from(run: "Trainer", folder: Path) -> Start:
    """Loads the latest checkpoint of a run, and checks it against the run's settings and data.

    Args:
        run: The run, in its initial state. All processes load the same checkpoint.
        folder: The latest checkpoint. If it is damaged, an older one is loaded.

    Raises:
        UserError: If no checkpoint can be read, or if the run cannot be resumed from it.
    """
    saved, damage = load_latest(
        folder,
        partial(load_checkpoint, empty=_allocator(run)),
        gather=run.engine.gather,
        otherwise="There is no older checkpoint. Set a different save_dir to start a new run.",
    )
    config, source = run.config, str(saved.folder)
    before = saved_config(saved.model, source=source)
    changed = config_diff(before, config, source=source)
    _check_data(saved, before, run)
    state = _with_earlier_batches(saved.state.replace(corpus=run.state.corpus), before.batch, run)
    notes = [
        damage,
        f"Resuming from update {state.update:,}, epoch {state.position.epoch}.",
        f"Changed settings: {', '.join(map(str, changed))}." if changed else "",
        "" if config.is_over(state) else rate_change(before, config, update=state.update),
    ]
    return Start(replace(saved, state=state), [note for note in notes if note], has_changes=bool(changed))


def _check_data(saved: Checkpoint, before: TrainConfig, run: "Trainer") -> None:
    """Raises UserError if the vocabularies or the training data differ from those of a checkpoint with config `before`.

    Checkpoints of older versions have no fingerprint of the training data, or a prefix of the current fingerprint.
    """
    source, config, corpus = saved.folder, run.config, run.state.corpus
    same = "to the same corpus to resume, or set a different save_dir to start a new run."
    if saved.model.assets != run.task.assets():
        raise UserError(
            f"{source} was trained with vocabularies that differ from the vocabularies in {config.task.data}.",
            f"Set task.data {same}",
        )
    if _has_same_data(saved, before, run):
        return
    then, now = (" + ".join(re.findall(r"(\d+) examples", text)) for text in (saved.state.corpus, corpus))
    how = f"{then} examples before, {now} now" if then != now else f"{now} examples in both, but different contents"
    data = format_list(_data_of(config))
    if _data_of(before) == _data_of(config):
        raise UserError(
            f"The training data in {data} have changed since {source}: {how}.",
            "Restore the data to resume, or set a different save_dir to start a new run.",
        )
    key = "task.mix" if config.task.mix else "task.data"
    raise UserError(f"{source} was trained on data that differ from {data}: {how}.", f"Set {key} {same}")


def _has_same_data(saved: Checkpoint, before: TrainConfig, run: "Trainer") -> bool:
    """Compares the training data of a checkpoint with config `before` with the data of the run.

    Fingerprints of older versions are prefixes of current ones. They do not include shards after the first, so a shard
    that was added (`task.data=A` → `A,B`) would look like an older version.
    """
    then, now = saved.state.corpus, run.state.corpus
    is_moved = _data_of(before) != _data_of(run.config)
    return now.startswith(then) and not (is_moved and then and then.count("+") != now.count("+"))


def _data_of(config: TrainConfig) -> list[str]:
    """Returns the locations of the training data."""
    return [corpus.data for corpus in config.task.mix] or [config.task.data]


def _with_earlier_batches(state: TrainState, before: BatchingConfig, run: "Trainer") -> TrainState:
    """Returns the state with the batch settings `before` of this epoch's examples so far, if the settings changed.

    The state also includes the static shapes of these settings, which depend on the lengths of the examples.
    """
    position, now = state.position, run.config.batch
    is_same = before.streams is not None or replace(before, workers=now.workers) == now
    is_known = bool(position.earlier) and position.earlier[-1].examples == position.examples
    if is_same or is_known or not position.examples:
        return state
    shapes = run_shapes(lengths_of_run(run.train_set), before, joined=run.task.joins_sides)
    stretch = Stretch(position.examples, before, shapes)
    return state.replace(position=replace(position, earlier=(*position.earlier, stretch)))


def _allocator(run: "Trainer") -> Empty | None:
    """Returns a function that allocates this process's shard of an optimizer tensor, or None if all are full."""
    if not run.engine.shards:
        return None
    parameters = dict(run.model.named_parameters())

    def empty(full_name: str, full: Tensor) -> Tensor:
        parameter = parameters.get(full_name.rpartition("/")[0])
        if parameter is None or parameter.shape != full.shape:
            return torch.empty_like(full, device="cpu")
        return run.engine.empty(full, parameter)

    return empty


def start_from(run: "Trainer", path: str) -> Start:
    """Loads the weights and the state of `init_from`, except the parts that are listed in `reset`.

    Args:
        run: The new run, in its initial state.
        path: The value of `init_from`.

    Raises:
        UserError: If no weight matches, or if a part that `reset` does not list cannot be kept. The error names the key
            to change.
    """
    config = run.config
    kept = [part for part in PARTS if part not in config.reset]
    saved, damage = _read(path, run, with_state=bool(kept))
    taken = transfer(
        saved.model, run.model, drawn=run.full_weights(), assets=run.task.assets(), source=f"init_from={path}"
    )
    notes = [*filter(None, [damage]), f"Starting from the weights of {saved.folder}:", *taken.lines()]
    saved = replace(saved, model=replace(saved.model, tensors=taken.tensors))
    if not kept:
        return Start(saved, notes)
    before = _check_kept(kept, saved, run)
    whole = {name for name, fate in taken.fates.items() if fate is Fate.TAKEN and "optimizer" in kept}
    optimizer = {name: tensor for name, tensor in saved.optimizer.items() if name.rpartition("/")[0] in whole}
    average = {name: tensor for name, tensor in saved.average.items() if name in whole}
    fields: dict[str, Any] = {name: getattr(saved.state, name) for part in kept for name in KEPT_BY.get(part, ())}
    fresh = len(saved.optimizer) - len(optimizer) if "optimizer" in kept else 0
    notes.append(
        f"Kept: {', '.join(kept)}; reset: {', '.join(config.reset) or 'nothing'}."
        + (
            f" Reset the optimizer state of weights that were not loaded ({how_many(fresh, 'tensor')})."
            if fresh
            else ""
        )
    )
    state = _with_earlier_batches(run.state.replace(**fields), before.batch, run)
    streams = saved.streams if "data" in kept else None
    return Start(replace(saved, optimizer=optimizer, average=average, streams=streams, state=state), notes)


def _read(path: str, run: "Trainer", *, with_state: bool) -> tuple[Checkpoint, str]:
    """Reads the checkpoint at `path`, the value of `init_from`, or only its weights and the initial state of `run`.

    If only the weights of a run are read, they are those of its best model, if there is one. If the latest checkpoint
    is damaged, an older one is read.

    Returns:
        (the checkpoint, a warning if newer checkpoints are damaged, else "").

    Raises:
        UserError: If the state is not stored at `path`, or if no checkpoint or model can be read.
    """

    def load(place: Path) -> Checkpoint:
        if with_state:
            return load_checkpoint(place, empty=_allocator(run))
        return Checkpoint(Path(path), model_file.read(place, key="init_from"), {}, run.state, None, {})

    is_best = not with_state and (Path(path) / "best.safetensors").is_file()
    try:
        latest = None if is_best else latest_checkpoint(Path(path))
    except UserError as error:
        advice = "Set init_from to one of these checkpoints, or to a different model."
        raise UserError(*str(error).splitlines()[:2], advice) from error
    if latest is not None:
        return load_latest(latest, load, gather=run.engine.gather, otherwise="Set init_from to a different model.")
    if with_state and not (Path(path) / "state.json").is_file():
        model_file.find(path, key="init_from")  # raises an error if there is nothing at the path
        raise UserError(
            f"init_from={path} contains only weights, so the parts that reset= does not list cannot be kept.",
            "Set init_from to the folder of a run or of one of its checkpoints, or remove reset=.",
        )
    return load(Path(path)), ""


def _check_kept(kept: Sequence[str], saved: Checkpoint, run: "Trainer") -> TrainConfig:
    """Returns the config of the saved run. Raises UserError if a kept part does not match the new run."""
    source, config, state = str(saved.folder), run.config, run.state
    before = saved_config(saved.model, source=source)
    for part in kept:
        others = [
            each for each in differences(before, config) if each.is_refused and each.section in NEEDS.get(part, ())
        ]
        if others:
            raise UserError(
                f"reset= does not list '{part}', but {source} was trained with {others[0].was}, not {others[0].now}.",
                *([f"Also different: {format_list([each.key for each in others[1:]])}."] if others[1:] else []),
                f"Set the same value, or add {part} to reset.",
            )
    if "data" in kept and not _has_same_data(saved, before, run):
        raise UserError(
            f"reset= does not list 'data', but {source} was trained on data that differ from "
            f"{format_list(_data_of(config))}.",
            "Add data to reset.",
        )
    if "best" in kept and saved.state.metric != state.metric:
        raise UserError(
            f"reset= does not list 'best', but {source} recorded the best {saved.state.metric}, not {state.metric}.",
            "Add best to reset.",
        )
    if "schedule" in kept and 0 < config.max_updates <= saved.state.update:
        raise UserError(
            f"max_updates={config.max_updates}: {source} has already made {how_many(saved.state.update, 'update')}, "
            "and reset= does not list 'schedule'.",
            "Raise max_updates, or add schedule to reset.",
        )
    return before
