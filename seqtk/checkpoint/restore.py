"""Reads a checkpoint to resume a run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seqtk.attention import State
from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import (
    CHECKSUMS,
    ModelFile,
    Tensors,
    checkpoint_folders,
    load_tensors,
    open_tensors,
)
from seqtk.checkpoint.run_state import (
    AVERAGE,
    FILES,
    OPTIMIZER,
    PIECES,
    STREAM_STATE,
    Empty,
    TrainState,
    state_checksum,
)
from seqtk.checkpoint.state_tree import load_tree
from seqtk.data.plan import BatchingConfig, Position, Stretch
from seqtk.data.static_shapes import Shape
from seqtk.utils.errors import UserError

T = TypeVar("T")

_FORMER_NAMES = {"validation_owed": "pending_validation"}
"""Name of a field in files of seqtk 0.1 → its name in `TrainState`."""

NONE = ""
"""Sent to the other processes by a process that can read no checkpoint. Sorts before all checkpoint names."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint."""

    folder: Path
    model: ModelFile
    optimizer: Tensors
    """`parameter/key` → tensor of the optimizer's state, or this process's part of it."""
    state: TrainState
    streams: State
    """The recurrent state of all rows, or None."""
    average: Tensors
    """The averaged weights and all buffers; empty if the run does not average."""


def load_checkpoint(folder: Path, *, empty: Empty | None = None) -> Checkpoint:
    """Reads a checkpoint and verifies its checksums.

    Args:
        folder: The checkpoint.
        empty: A function that returns the tensor into which a part of the optimizer's state is read. None: full tensors
            are read.

    Raises:
        UserError: If a file is missing or damaged.
    """
    paths = [folder / STREAM_STATE, folder / "carried.safetensors"]  # seqtk 0.1 wrote the second name
    streams = next((path for path in paths if path.is_file()), None)
    return Checkpoint(
        folder=folder,
        state=_read_state(folder / "state.json"),
        model=model_file.read(folder),
        optimizer=_load_optimizer(folder, empty),
        streams=None if streams is None else load_tree(streams),
        average=load_tensors(folder / AVERAGE)[0] if (folder / AVERAGE).is_file() else {},
    )


def _load_optimizer(folder: Path, empty: Empty | None) -> Tensors:
    """Reads the optimizer's state from the file of one process, or from the files of several processes."""
    paths = sorted(folder.glob(f"{OPTIMIZER}*.safetensors")) or [folder / f"{OPTIMIZER}.safetensors"]
    files = [open_tensors(path) for path in paths]
    if empty is None and len(files) == 1 and PIECES not in files[0].metadata:
        return load_tensors(paths[0])[0]
    from seqtk.checkpoint import shards  # the import takes half a second, so it is made only if the state is sharded

    return shards.load(files, empty or (lambda _, full: torch.empty_like(full, device="cpu")))


def load_latest(
    folder: Path, load: Callable[[Path], T], *, gather: Callable[[str], list[str]], otherwise: str
) -> tuple[T, str]:
    """Reads a checkpoint or, if it is damaged, the newest intact older one.

    Args:
        folder: The checkpoint.
        load: A function that reads a checkpoint, or a part of it. Raises UserError if it is damaged.
        gather: A function that collects a value from all processes, so that all read the same checkpoint.
        otherwise: The last line of the error if no checkpoint can be read, which says what the user can do.

    Returns:
        (the result of `load`, a warning if newer checkpoints are damaged, else "").

    Raises:
        UserError: If no checkpoint can be read.
    """
    older = [path for path in checkpoint_folders(folder.parent) if path.name < folder.name]
    places = [folder, *reversed(older)]
    errors: list[UserError] = []
    checkpoint: T | None = None
    while True:  # until all processes have read the same checkpoint
        while checkpoint is None and places:
            try:
                checkpoint = load(places[0])
            except UserError as error:
                errors.append(error)
                places = places[1:]
        names = gather(places[0].name if places else NONE)
        oldest = min(names)
        if checkpoint is None:
            raise UserError(*str(errors[0]).splitlines()[:2], otherwise) from errors[0]
        if oldest == NONE:
            raise UserError(f"Another process of the run cannot read any checkpoint in {folder.parent}.")
        if oldest == max(names):
            why = " ".join(str(error).splitlines()[0] for error in errors)
            return checkpoint, f"{why} Using the checkpoint before it, {oldest}." if errors else ""
        if oldest != places[0].name:
            errors.append(UserError(f"Another process of the run cannot read {places[0]}."))
            places = [place for place in places if place.name <= oldest]
            checkpoint = None


def set_optimizer_tensors(
    model: nn.Module,
    optimizer: Optimizer,
    tensors: Tensors,
    *,
    source: str,
    local: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Copies the state in `tensors` into the optimizer.

    `local(tensor, parameter)` returns this process's shard of a full tensor, on the device of the parameter.

    Raises:
        UserError: If a tensor belongs to no parameter of the model.
    """
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise UserError(f"{source} has optimizer state for '{full_name}', which is not a weight of this model.")
        parameter = parameters[name]
        # torch keeps the step count on the CPU unless the optimizer is fused; a scalar is never sharded
        on_cpu = key == "step" and not optimizer.defaults.get("fused")
        is_part = tensor.shape == parameter.shape
        place = tensor if on_cpu else local(tensor, parameter) if is_part else tensor.to(parameter.device)
        optimizer.state[parameter][key] = place


def _read_state(path: Path) -> TrainState:
    try:
        values = json.loads(path.read_text())
        checksum = values.pop(CHECKSUMS, None)
        if checksum is not None and checksum != state_checksum(values):
            raise UserError(f"{path} is damaged or incomplete.", "The checksum of the file is wrong.")
        for name in values.pop(FILES, ()):
            if not path.with_name(name).is_file():
                raise UserError(f"There is no file {path.with_name(name)}.")
        state = {_FORMER_NAMES.get(name, name): value for name, value in values.items()}
        return TrainState(**{**state, "position": _position(state["position"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not the state file of a checkpoint: {error}.") from error


def _position(tree: Mapping[str, Any]) -> Position:
    """Converts the result of `asdict(position)` to a Position. Raises TypeError or KeyError if it is invalid."""
    stretches = (
        Stretch(
            each["examples"],
            BatchingConfig(**each["batching"]),
            tuple(Shape(**{**shape, "lengths": tuple(shape["lengths"])}) for shape in each["shapes"]),
        )
        for each in tree.get("earlier", ())
    )
    return Position(**{**tree, "earlier": tuple(stretches)})
