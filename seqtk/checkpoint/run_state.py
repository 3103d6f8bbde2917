"""The folder of a run: one directory per checkpoint, written atomically. Resuming is bit-exact.

The model file `model.safetensors` contains the weights, the model file `ema.safetensors` the averaged weights,
`optimizer.safetensors` the optimizer's tensors by parameter, `stream_state.safetensors` the recurrent state of
`batch.streams`, and `state.json` everything else. If the optimizer's tensors are sharded, each process writes a file
`optimizer_RANK.safetensors` instead (`seqtk.checkpoint.shards`). Nothing is pickled, so no file can run code. The file
`latest` in save_dir contains the name of the newest checkpoint.
"""

import fcntl
import itertools
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from seqtk.attention import State
from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import (
    CHECKPOINT,
    CHECKSUMS,
    ModelFile,
    Tensors,
    checkpoint_folders,
    read_metadata,
    save_tensors,
)
from seqtk.checkpoint.state_tree import save_tree
from seqtk.data.batch import Dataset, take
from seqtk.data.mixing import MixedExamples
from seqtk.data.plan import Position
from seqtk.tasks.base import Assets
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_directory, check_writable, partial_directory, write_text

T = TypeVar("T")
Together = Callable[[Callable[[], T]], T]
"""Calls a function in all processes that write a checkpoint. If it fails in one, all raise an exception."""

Empty = Callable[[str, Tensor], Tensor]
"""Returns the tensor into which a process reads its part of a tensor, given the name and shape of the full tensor."""

OPTIMIZER = "optimizer"
"""The prefix of the names of files with the optimizer's state."""
PIECES = "pieces"
"""The key of the positions of the pieces in the header of a file with the optimizer's state."""
STREAM_STATE = "stream_state.safetensors"
AVERAGE = "ema.safetensors"
FILES = "files"
"""The key in `state.json` whose value lists the other files of the checkpoint."""
MOST_READ = 1000
"""The number of examples of a corpus whose tokens and classes its fingerprint includes."""


@dataclass(frozen=True)
class TrainState:
    """The progress of a run: everything except weights and optimizer state."""

    update: int = 0
    position: Position = field(default_factory=Position)
    metric: str = ""
    """The metric and the validation set that `best` belongs to."""
    best: float | None = None
    validations_without_best: int = 0
    pending_validation: bool = False
    """True if the validation of this update has not been run yet."""
    seconds: float = 0.0
    """Time spent training, over all sessions of the run."""
    interval: dict[str, float] = field(default_factory=dict)
    """Sums of the logged values since the last log line."""
    corpus: str = ""
    """Fingerprint of the training data."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """State of the loss scale of precision=fp16."""

    def replace(self, **changes: Any) -> "TrainState":
        """Returns a copy of the state with the given fields changed."""
        return replace(self, **changes)


class Place(TypedDict):
    """The position of a piece of a larger tensor. A piece consists of consecutive rows."""

    start: int
    """The index of the first row of the piece."""
    size: list[int]
    """The shape of the larger tensor."""


@dataclass(frozen=True)
class Pieces:
    """The part of the optimizer's state that one process writes: whole tensors, or rows of tensors."""

    tensors: Tensors
    places: Mapping[str, Place] = field(default_factory=dict)
    """The positions of the pieces of larger tensors."""
    rank: int | None = None
    """The rank of this process. None: it is the only process that writes the optimizer's state."""

    def write(self, folder: Path) -> None:
        """Writes the tensors into the folder of a checkpoint."""
        name = OPTIMIZER if self.rank is None else f"{OPTIMIZER}_{self.rank:05d}"
        save_tensors(folder / f"{name}.safetensors", self.tensors, {PIECES: self.places} if self.places else None)


def alone(step: Callable[[], T]) -> T:
    """Calls `step`: the implementation of `Together` for a single process."""
    return step()


class Checkpoints:
    """The checkpoints of one run, in its save_dir.

    Args:
        save_dir: The folder of the run.
        config: The plain tree of the run's config, for the model files.
        assets: The assets of the task, for the model files.
        metric: The metric that selects the best models.
        keep_last, keep_best: The number of checkpoints and of best models to keep.
    """

    def __init__(
        self,
        save_dir: Path,
        *,
        config: Mapping[str, Any],
        assets: Assets,
        metric: str,
        keep_last: int = 5,
        keep_best: int = 1,
    ) -> None:
        self.directory = save_dir
        self.config, self.assets, self.metric = dict(config), assets, metric
        self.keep_last, self.keep_best = keep_last, keep_best

    def save(
        self,
        model: Tensors,
        optimizer: Pieces,
        state: TrainState,
        *,
        streams: State = None,
        average: Tensors | None = None,
        together: "Together[Any]" = alone,
    ) -> Path:
        """Writes the checkpoint of `state.update`, updates `latest`, and keeps only the newest `keep_last` checkpoints.

        If other processes call `save_pieces`, this process completes the checkpoint after they have written their
        pieces.
        """
        folder = self.directory / _name(state.update)

        def write() -> None:
            self._write_model(partial / "model.safetensors", model, state)
            optimizer.write(partial)
            if average is not None:
                self._write_model(partial / AVERAGE, average, state)
            if streams is not None:
                save_tree(partial / STREAM_STATE, streams)

        with ExitStack() as stack:
            partial: Path = together(lambda: stack.enter_context(atomic_directory(folder)))
            together(write)
            _write_state(partial, state)
        write_text(self.directory / "latest", folder.name)
        for old in self.folders()[: -self.keep_last]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def save_pieces(self, optimizer: Pieces, update: int, *, together: "Together[Any]") -> None:
        """Writes this process's pieces into the checkpoint that the first process saves."""
        together(lambda: None)  # the first process makes the folder
        together(lambda: optimizer.write(partial_directory(self.directory / _name(update))))

    def save_state(self, state: TrainState) -> None:
        """Replaces the state in the existing checkpoint of update `state.update`. Its weights do not change."""
        _write_state(self.directory / _name(state.update), state)

    def save_best(self, model: Tensors, state: TrainState, metrics: Mapping[str, float], *, higher: bool) -> None:
        """Saves the model if it is among the best `keep_best`, and updates `best.safetensors`.

        With `keep_best=0`, an earlier session's `best.safetensors` is removed if this validation is better, because
        that model is no longer the best.

        Args:
            model: The weights; not used with `keep_best=0`.
            state: The state of the run, whose `best` includes this validation.
            metrics: The results of the validation, stored in the model file.
            higher: True if higher values of the metric are better.
        """
        value = metrics[self.metric]
        if self.keep_best > 1:
            name = f"best_{self.metric}_{value:.4f}_update_{state.update:08d}.safetensors"
            self._write_model(self.directory / name, model, state, metrics)
            kept = list(self.directory.glob(f"best_{self.metric}_*_update_*[0-9].safetensors"))
            kept.sort(key=lambda path: self._recorded(path, higher=higher), reverse=higher)
            for worse in kept[self.keep_best :]:
                worse.unlink(missing_ok=True)
        best = self.directory / "best.safetensors"
        if state.best == value and self.keep_best:
            self._write_model(best, model, state, metrics)
        elif state.best == value:
            best.unlink(missing_ok=True)

    def archive_newer(self, update: int) -> Path | None:
        """Moves checkpoints and best models newer than `update` to a folder `abandoned_N`.

        These files are from an abandoned session. The new session must not use them as its newest or best.
        """
        found = [*self.folders(), *self.directory.glob("best*.safetensors")]
        newer = [path for path in found if _update_of(path) > update]
        if not newer:
            return None
        names = (self.directory / f"abandoned_{number}" for number in itertools.count(1))
        archive = next(path for path in names if not path.exists())
        archive.mkdir()
        for path in newer:
            os.replace(path, archive / path.name)
        return archive

    def folders(self) -> list[Path]:
        """Returns the checkpoints that exist, oldest first."""
        return checkpoint_folders(self.directory)

    def _write_model(
        self, path: Path, model: Tensors, state: TrainState, metrics: Mapping[str, float] | None = None
    ) -> None:
        info = {"update": state.update, "epoch": state.position.epoch, **(metrics or {})}
        model_file.write(path, ModelFile(model, self.config, self.assets, info))

    def _recorded(self, path: Path, *, higher: bool) -> float:
        """Returns the metric stored in a model file, or the worst possible value if the file cannot be read."""
        with suppress(UserError, KeyError, TypeError, ValueError):
            return float(read_metadata(path)["info"][self.metric])
        return -math.inf if higher else math.inf


def latest_checkpoint(save_dir: Path) -> Path | None:
    """Returns the checkpoint to resume from, or None for a new run. The checkpoint may be damaged or missing.

    Raises:
        UserError: If the file `latest` does not contain the name of a checkpoint.
    """
    pointer, names = save_dir / "latest", [path.name for path in checkpoint_folders(save_dir)]
    if not pointer.is_file():
        return None
    name = pointer.read_text(errors="replace").strip()
    if not CHECKPOINT.fullmatch(name) or not any(other <= name for other in names):
        raise UserError(
            f"{pointer} {f'contains {name}' if name else 'is empty'}: it must contain the name of a checkpoint.",
            f"Checkpoints: {', '.join(names) or 'none'}.",
            f"Write the name of a checkpoint into {pointer}, or remove this file to start a new run.",
        )
    return save_dir / name


@contextmanager
def locked(save_dir: Path) -> Iterator[None]:
    """Context manager that locks save_dir against other runs. If the run writes nothing, leaves no new file or folder.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        UserError: If save_dir cannot be written, or another run is writing to it.
    """
    check_writable(save_dir, key="save_dir")
    created = [path for path in (save_dir, *save_dir.absolute().parents) if not path.exists()]
    save_dir.mkdir(parents=True, exist_ok=True)
    path = save_dir / ".lock"
    is_new = not path.exists()
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"Another run is writing to {save_dir}.", "Wait until it ends, or set another save_dir."
            ) from None
        _remove_partial(save_dir)
        try:
            yield
        finally:
            if is_new and not (save_dir / "log.jsonl").exists() and not (save_dir / "latest").exists():
                path.unlink(missing_ok=True)
                with suppress(OSError):  # the folder is not empty
                    for folder in created:
                        folder.rmdir()


def _remove_partial(save_dir: Path) -> None:
    """Removes unfinished files of a run that was killed. Unfinished files of other commands are kept."""
    for pattern in ("log.jsonl", "best*", "latest", "replay.*"):
        for path in save_dir.glob(f".{pattern}.partial-*"):
            path.unlink(missing_ok=True)
    for path in save_dir.glob("update_*/.state.json.partial-*"):
        path.unlink(missing_ok=True)
    for folder in save_dir.glob("update_*.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def fingerprint(train_sets: Sequence[Dataset]) -> str:
    """Returns a fingerprint of the training data, given the examples of each epoch, until they repeat."""
    return " + ".join(map(_fingerprint, train_sets))


def _fingerprint(train_set: Dataset) -> str:
    """Returns the fingerprint of the examples of an epoch.

    For each corpus: the number of examples, and CRCs of all lengths and of the tokens of some examples. Then a CRC of
    the classes of these examples.
    """
    corpora = train_set.corpora if isinstance(train_set, MixedExamples) else (train_set,)
    found, classes = [], 0
    for corpus in corpora:
        lengths = np.ascontiguousarray(corpus.sizes_ND, dtype=np.int32)
        content = 0
        read = np.linspace(0, len(corpus) - 1, min(len(corpus), MOST_READ)).astype(int).tolist()
        for leaf in tree_leaves(take(corpus, read)):
            if isinstance(leaf, np.ndarray):
                content = zlib.crc32(np.ascontiguousarray(leaf, dtype=np.int64).tobytes(), content)
            elif isinstance(leaf, int | np.integer):  # a class, or the index of the example
                classes = zlib.crc32(b"%d " % leaf, classes)
        found.append(f"{len(corpus)} examples, {zlib.crc32(lengths.tobytes()):08x}, {content:08x}")
    return f"{' + '.join(found)}, {classes:08x}"


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """Returns the optimizer's state: `parameter/key` → tensor."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def _name(update: int) -> str:
    return f"update_{update:08d}"


def _update_of(path: Path) -> float:
    """Returns the update of a checkpoint or best model, or infinity if it cannot be read."""
    if found := CHECKPOINT.fullmatch(f"update_{path.stem.rpartition('update_')[2]}"):
        return int(found[1])
    try:
        return float(read_metadata(path)["info"]["update"])
    except (UserError, KeyError):
        return math.inf


def state_checksum(values: Mapping[str, Any]) -> int:
    """Returns the checksum of `values`, the contents of `state.json` without the checksum."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _write_state(folder: Path, state: TrainState) -> None:
    """Writes `state.json`, which contains the state and the names of the other files in the folder."""
    values = {**asdict(state), FILES: sorted(path.name for path in folder.glob("*.safetensors"))}
    write_text(folder / "state.json", json.dumps({**values, CHECKSUMS: state_checksum(values)}, indent=1))
