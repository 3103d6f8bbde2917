"""Loads the initial state of a run: from its last checkpoint, or from a different run (`init_from`, `reset`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seqtk.attention import State
from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import Tensors
from seqtk.checkpoint.restore import Checkpoint, load_checkpoint, load_latest
from seqtk.checkpoint.run_state import Checkpoints, Empty, TrainState
from seqtk.checkpoint.transfer import Fate, transfer
from seqtk.data.plan import BatchingConfig, SizeArray, Stretch, run_shapes
from seqtk.models import Model
from seqtk.tasks.base import Assets
from seqtk.training.config import PARTS, TrainConfig
from seqtk.training.parallel import Engine
from seqtk.training.resume import check_resumable, data_of, differences, format_list, other_batches, saved_config
from seqtk.utils.errors import UserError, how_many

T = TypeVar("T")

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

    source: str
    """The path of the checkpoint or model, for errors."""
    weights: Tensors
    optimizer: Tensors
    average: Tensors
    streams: State
    state: TrainState
    notes: list[str]
    """Lines for the log about what was loaded."""
    has_changes: bool = False
    """True if settings differ from the checkpoint's settings."""
    other_batches: BatchingConfig | None = None
    """The batch settings before `state.position` if they differ from the current ones, otherwise None."""

    def state_on(self, sizes_ND: SizeArray, *, joined: bool) -> TrainState:
        """Returns the initial state, given the lengths of the training examples.

        If settings in `batch` changed within an epoch, the state includes the earlier settings and their static shapes,
        which depend on these lengths.

        Args:
            sizes_ND: The lengths of the examples.
            joined: True if a batch pads all sides of its examples to the same length (`Task.joins_sides`).
        """
        before, position = self.other_batches, self.state.position
        is_known = bool(position.earlier) and position.earlier[-1].examples == position.examples
        if before is None or not position.examples or is_known:
            return self.state
        stretch = Stretch(position.examples, before, run_shapes(sizes_ND, before, joined=joined))
        return self.state.replace(position=replace(position, earlier=(*position.earlier, stretch)))


def resume_from(
    folder: Path, config: TrainConfig, *, engine: Engine, model: nn.Module, assets: Assets, corpus: str
) -> Start:
    """Loads the latest checkpoint of a run, and checks it against the run's settings and data.

    Args:
        folder: The latest checkpoint. If it is damaged, an older one is loaded.
        config: The config of the run.
        engine: The engine of the run. All processes load the same checkpoint.
        model: The model of the run.
        assets: The assets of the task.
        corpus: The fingerprint of the training data.

    Raises:
        UserError: If no checkpoint can be read, or if the run cannot be resumed from it.
    """
    saved, damage = load_latest(
        folder,
        partial(load_checkpoint, empty=_allocator(model, engine)),
        gather=engine.gather,
        otherwise="There is no older checkpoint. Set a different save_dir to start a new run.",
    )
    changed, rates, batches = check_resumable(saved, config, assets=assets, corpus=corpus)
    state = saved.state.replace(corpus=corpus)
    notes = [
        damage,
        f"Resuming from update {state.update:,}, epoch {state.position.epoch}.",
        f"Changed settings: {format_list(changed)}." if changed else "",
        rates or "" if not config.is_over(state) else "",
    ]
    return Start(
        source=str(saved.folder),
        weights=saved.model.tensors,
        optimizer=saved.optimizer,
        average=saved.average,
        streams=saved.streams,
        state=state,
        notes=[note for note in notes if note],
        has_changes=bool(changed),
        other_batches=batches,
    )


def _allocator(model: nn.Module, engine: Engine) -> Empty | None:
    """Returns a function that allocates this process's shard of an optimizer tensor, or None if all are full."""
    if not engine.shards:
        return None
    parameters = dict(model.named_parameters())

    def empty(full_name: str, full: Tensor) -> Tensor:
        parameter = parameters.get(full_name.rpartition("/")[0])
        if parameter is None or parameter.shape != full.shape:
            return torch.empty_like(full, device="cpu")
        return engine.empty(full, parameter)

    return empty


def start_from(
    config: TrainConfig, *, engine: Engine, model: Model, drawn: Tensors, assets: Assets, state: TrainState
) -> Start:
    """Loads the weights and the state of `init_from`, except the parts that are listed in `reset`.

    Args:
        config: The config of the new run.
        engine: The engine of the new run.
        model: The model of the new run.
        drawn: The initial tensors of the model, for weights that `init_from` does not have.
        assets: The assets of the task.
        state: The initial state, with the fingerprint of the corpus and the metric.

    Raises:
        UserError: If no weight matches, or if a part that `reset` does not list cannot be kept. The error names the key
            to change.
    """
    assert config.init_from is not None
    source = f"init_from={config.init_from}"
    kept = [part for part in PARTS if part not in config.reset]
    saved: Checkpoint | None = None
    if kept:
        _check_has_state(config.init_from)
        load = partial(load_checkpoint, empty=_allocator(model, engine))
        checkpoint, damage = _read(config.init_from, load, engine=engine)
        saved, contents = checkpoint, checkpoint.model
    else:
        weights = partial(model_file.read, key="init_from")
        contents, damage = _read(config.init_from, weights, prefers="best.safetensors", engine=engine)
    taken = transfer(contents, model, drawn=drawn, assets=assets, source=source)
    weights_of = saved.folder if saved else config.init_from
    notes = [*filter(None, [damage]), f"Starting from the weights of {weights_of}:", *taken.lines()]
    if saved is None:
        return Start(source, taken.tensors, {}, {}, None, state, notes)
    before = _check_kept(kept, saved, config, state=state)
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
    streams = saved.streams if "data" in kept else None
    batches = other_batches(before.batch, config.batch) if "data" in kept else None
    state = replace(state, **fields)
    return Start(source, taken.tensors, optimizer, average, streams, state, notes, other_batches=batches)


def _latest(path: str) -> Path | None:
    """Returns the latest checkpoint if `path` is the folder of a run, otherwise None."""
    try:
        return Checkpoints(Path(path), config={}, assets={}, metric="").latest()
    except UserError as error:
        advice = "Set init_from to one of these checkpoints, or to a different model."
        raise UserError(*str(error).splitlines()[:2], advice) from error


def _check_has_state(path: str) -> None:
    """Raises UserError unless `path` is a checkpoint or the folder of a run with checkpoints."""
    if _latest(path) is None and not (Path(path) / "state.json").is_file():
        model_file.find(path, key="init_from")  # raises an error if there is nothing at the path
        raise UserError(
            f"init_from={path} contains only weights, so the parts that reset= does not list cannot be kept.",
            "Set init_from to the folder of a run or of one of its checkpoints, or remove reset=.",
        )


def _read(path: str, load: Callable[[Path], T], *, prefers: str | None = None, engine: Engine) -> tuple[T, str]:
    """Reads the model or checkpoint at `path`. If the latest checkpoint of a run is damaged, reads an older one.

    Args:
        path: The value of `init_from`.
        load: Reads a model or a checkpoint.
        prefers: If the folder of a run contains this file, it is read instead of the checkpoints.
        engine: The engine of the new run.

    Returns:
        (the result of `load`, a warning if newer checkpoints are damaged, else "").
    """
    latest = None if prefers and (Path(path) / prefers).is_file() else _latest(path)
    if latest is None:
        return load(Path(path)), ""
    return load_latest(latest, load, gather=engine.gather, otherwise="Set init_from to a different model.")


def _check_kept(kept: Sequence[str], saved: Checkpoint, config: TrainConfig, *, state: TrainState) -> TrainConfig:
    """Returns the config of the saved run. Raises UserError if a kept part does not match the new run."""
    source = str(saved.folder)
    before = saved_config(saved.model.config, source=source, version=str(saved.model.info.get("version")))
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
    if "data" in kept and not state.corpus.startswith(saved.state.corpus):
        raise UserError(
            f"reset= does not list 'data', but {source} was trained on data that differ from "
            f"{format_list(data_of(config))}.",
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
