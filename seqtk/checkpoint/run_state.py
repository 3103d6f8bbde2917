"""Checkpoints: a folder an update, whole or not there, from which the same run goes on bit for bit.

`model.safetensors` is an export, `optimizer.safetensors` the optimizer's tensors by parameter, `carried.safetensors`
what streams hand on, `state.json` the rest. All inert files: nothing is pickled. `latest` in save_dir names the newest
folder.
"""

import fcntl
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from seqtk.attention import State
from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import (
    ModelFile,
    Tensors,
    checkpoint_folders,
    load_tensors,
    read_info,
    save_tensors,
    set_tensors,
    tensors_of,
)
from seqtk.config import schema
from seqtk.data.plan import Position
from seqtk.tasks import Task
from seqtk.training.config import TrainConfig
from seqtk.training.resume import Difference, compare
from seqtk.utils.errors import UserError, naming
from seqtk.utils.files import check_writable


@dataclass(frozen=True)
class TrainState:
    """Where a run is; all that is neither weights nor optimizer."""

    update: int = 0
    position: Position = field(default_factory=Position)
    metric: str = ""
    """What `best` is measured by, and on which split."""
    best: float | None = None
    validations_without_best: int = 0
    validation_owed: bool = False
    """Whether the validation of this update is still to come."""
    seconds: float = 0.0
    """Spent training, over all the sessions of the run."""
    interval: dict[str, float] = field(default_factory=dict)
    """Sums since the last log line."""

    def after(self, **changes: Any) -> "TrainState":
        """This state with some fields changed."""
        return replace(self, **changes)


class Checkpoints:
    """The checkpoints of one run, in its save_dir."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.directory = Path(config.save_dir)

    def save(
        self, model: nn.Module, optimizer: Optimizer, state: TrainState, task: Task, *, carried: State = None
    ) -> Path:
        """Write a checkpoint of this update, point `latest` at it, and remove the ones that are too old.

        `carried` is what all rows hand to the next update: dicts and lists of tensors and None.
        """
        folder = self.directory / _name(state.update)
        temporary = self.directory / f"{folder.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            self.export(temporary / "model.safetensors", model, state, task)
            save_tensors(temporary / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
            if carried is not None:
                _save_tree(temporary / "carried.safetensors", carried)
            with naming(temporary / "state.json"):
                (temporary / "state.json").write_text(_state_text(state))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _write_text(self.directory / "latest", folder.name)
        for old in self.folders()[: -max(self.config.checkpoint.keep_last, 1)]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def save_state(self, state: TrainState) -> None:
        """Replace what the checkpoint of this update says of the state, whose weights are the same."""
        _write_text(self.directory / _name(state.update) / "state.json", _state_text(state))

    def put_aside(self, *, later_than: int) -> Path | None:
        """Move what was saved of later updates out of the way, and say where to.

        It is of a run that was given up when this one began at an earlier update: among this one's checkpoints it
        would pass for the newest, or the best.
        """
        found = [*self.folders(), *self.directory.glob("best*.safetensors")]
        later = [path for path in found if _update_of(path) > later_than]
        if not later:
            return None
        names = (self.directory / f"abandoned_{number}" for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        aside.mkdir()
        for path in later:
            os.replace(path, aside / path.name)
        return aside

    def export(
        self, path: Path, model: nn.Module, state: TrainState, task: Task, figures: dict[str, float] | None = None
    ) -> None:
        """Write the model alone."""
        info = {"update": state.update, "epoch": state.position.epoch, **(figures or {})}
        model_file.save(path, tensors_of(model), config=self.config, assets=task.assets(), info=info)

    def export_best(
        self, model: nn.Module, state: TrainState, task: Task, figures: dict[str, float], *, higher: bool
    ) -> None:
        """Keep the model among the best `keep_best`; `best.safetensors` is the first of them."""
        metric = self.config.validation.metric
        path = self.directory / f"best_{metric}_{figures[metric]:.4f}_update_{state.update:08d}.safetensors"
        keep = self.config.checkpoint.keep_best
        if keep > 1:
            self.export(path, model, state, task, figures)
            kept = sorted(self.directory.glob(f"best_{metric}_*.safetensors"), key=_value_in_name, reverse=higher)
            for worse in kept[keep:]:
                worse.unlink(missing_ok=True)
        if state.best == figures[metric]:
            self.export(self.directory / "best.safetensors", model, state, task, figures)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of save_dir. Raises UserError if one is in it; the lock ends with its process."""
        check_writable(self.directory, key="save_dir")
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"Another run is writing to {self.directory}.", "Wait for its end, or set another save_dir."
                ) from None
            yield

    def folders(self) -> list[Path]:
        """The checkpoints that are there, oldest first."""
        return checkpoint_folders(self.directory)

    def latest(self) -> Path | None:
        """The checkpoint to go on from, or None for a new run."""
        pointer = self.directory / "latest"
        if not pointer.is_file():
            return None
        name = pointer.read_text(errors="replace").strip()
        folder = self.directory / name
        if not name or not (folder / "state.json").is_file():
            raise UserError(
                f"{pointer} names {name or 'nothing'}, which is not a checkpoint.",
                f"There are: {', '.join(path.name for path in self.folders()) or 'none'}.",
                f"Write one of these into {pointer}, or remove it to start anew.",
            )
        return folder

    def restore(
        self, folder: Path, model: nn.Module, optimizer: Optimizer, task: Task
    ) -> tuple[TrainState, list[Difference]]:
        """Put weights and optimizer back as they were. Returns the rest, and which settings are other now.

        Raises UserError for a run that was another one.
        """
        with self._damage_told(folder):
            export = model_file.read(folder)
            tensors, _ = load_tensors(folder / "optimizer.safetensors")
            state = _read_state(folder / "state.json")
        changed = compare(_config_of(export, source=str(folder)), self.config, source=str(folder))
        if export.assets != task.assets():
            raise UserError(
                f"{folder} is of a run with other vocabularies than those in {self.config.task.data}.",
                "Give the same corpus to go on, or another save_dir to start anew.",
            )
        set_tensors(model, export.tensors, source=str(folder))
        _set_optimizer_tensors(model, optimizer, tensors, source=str(folder))
        return state, changed

    def carried(self, folder: Path) -> State:
        """What the rows of a checkpoint's update hand on, or None."""
        path = folder / "carried.safetensors"
        with self._damage_told(folder):
            return _load_tree(path) if path.is_file() else None

    @contextmanager
    def _damage_told(self, folder: Path) -> Iterator[None]:
        """To what is said of a checkpoint that cannot be read, adds which others there are."""
        try:
            yield
        except UserError as error:
            others = [path.name for path in self.folders() if path != folder]
            raise UserError(
                *str(error).splitlines()[:2],
                f"Write {others[-1]} into {self.directory / 'latest'} to go on from that."
                if others
                else "There is no other checkpoint: set another save_dir to start anew.",
            ) from error


def _config_of(contents: ModelFile, *, source: str) -> TrainConfig:
    """The run's configuration. Raises UserError naming a key that this version does not know."""
    try:
        return schema.from_dict(TrainConfig, contents.config)
    except UserError as error:
        lines = str(error).splitlines()
        version = contents.info.get("version")
        raise UserError(f"{source} was written by seqtk {version}: {lines[0]}", *lines[1:2]) from error


def _name(update: int) -> str:
    return f"update_{update:08d}"


def _update_of(path: Path) -> float:
    """The update that a checkpoint, or one of the best models, is of; of one that cannot be read, no matter which."""
    _, found, update = path.stem.rpartition("update_")
    if found:
        return int(update)
    try:
        return float(read_info(path)["update"])
    except (UserError, KeyError):
        return math.inf


def _state_text(state: TrainState) -> str:
    return json.dumps(asdict(state), indent=1)


def _read_state(path: Path) -> TrainState:
    try:
        state = json.loads(path.read_text())
        return TrainState(**{**state, "position": Position(**state["position"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a checkpoint's state: {error}.") from error


def _value_in_name(path: Path) -> float:
    return float(path.name.split("_")[-3])


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(temporary):
        temporary.write_text(text)
    os.replace(temporary, path)


def _save_tree(path: Path, tree: State) -> None:
    """Write a tree of tensors; the header says where in it each of them stands."""
    tensors: Tensors = {}

    def name(leaf: Tensor | None) -> str | None:
        if leaf is None:
            return None
        tensors[str(len(tensors))] = leaf
        return str(len(tensors) - 1)

    save_tensors(path, tensors, {"tree": tree_map(name, tree)})


def _load_tree(path: Path) -> State:
    tensors, metadata = load_tensors(path)
    try:
        return tree_map(lambda name: None if name is None else tensors[name], metadata["tree"])
    except KeyError as error:
        raise UserError(f"{path} is not what a run's streams hand on: it lacks {error}.") from error


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Tensors:
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def _set_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Tensors, *, source: str) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise UserError(f"{source} has optimizer state for '{full_name}', which is no weight of this model.")
        parameter = parameters[name]
        # Adam keeps its step count on the CPU, unless it is fused.
        place = tensor if key == "step" and not optimizer.defaults.get("fused") else tensor.to(parameter.device)
        optimizer.state[parameter][key] = place
