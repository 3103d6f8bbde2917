"""A trained model as one file: safetensors with the configuration and the task's assets as JSON in its header.

Reading a model file runs no code. `seqtk.checkpoint.trained_model` builds the model of a file. Call the functions with
the module's name: `model_file.read(path)`.
"""

import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from safetensors.torch import save_file
from torch import Tensor, nn

from seqtk import __version__
from seqtk.tasks.base import Assets
from seqtk.utils.errors import UserError
from seqtk.utils.file_kinds import describe
from seqtk.utils.files import atomic_file, is_special
from seqtk.utils.suggestions import near_path

Tensors = dict[str, Tensor]

CHECKPOINT = re.compile(r"update_([0-9]{8,})")
"""The name of a checkpoint: its number of updates. Folders with other names, such as copies, are not checkpoints."""
CHECKSUMS = "crc32"
"""The key of the checksums in a file's header."""
DAMAGED = "Copy it again from an intact source, or use another checkpoint."


@dataclass(frozen=True)
class ModelFile:
    """The contents of one model file."""

    tensors: Tensors
    config: dict[str, Any]
    """The configuration of the run as a plain tree. Using the model needs only `task` and `model`."""
    assets: Assets
    info: dict[str, Any]
    """The origin of the model: update, epoch, metrics, and the version of seqtk that wrote it."""


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose tensors are read one at a time."""

    path: Path
    shapes: Tensors
    """Name → tensor without its values, on the device `meta`."""
    metadata: dict[str, Any]
    checksums: dict[str, int] | None
    """Name → checksum of the tensor. None: the file has no checksums."""

    def read(self, name: str) -> Tensor:
        """Returns a tensor. Raises UserError if the file is missing or damaged."""
        with _opened(self.path) as file:
            tensor: Tensor = file.get_tensor(name)
        _verify(self.path, name, tensor, self.checksums)
        return tensor


def write(path: str | os.PathLike[str], contents: ModelFile) -> None:
    """Writes a model file atomically. Adds the version of seqtk if the model was not read from a file."""
    info = {"version": __version__, **contents.info}
    header = {"config": contents.config, "assets": contents.assets, "info": info}
    save_tensors(Path(path), contents.tensors, header)


def read(path: str | os.PathLike[str], *, key: str = "checkpoint") -> ModelFile:
    """Returns the contents of the model file at `path` (see `find`). Raises UserError if it is not a model file."""
    file = find(path, key=key)
    tensors, metadata = load_tensors(file)
    if not {"config", "assets", "info"} <= metadata.keys():
        if any("/" in name for name in tensors):
            raise UserError(f"{file} contains the state of an optimizer, not a model.", f"Set {key}={file.parent}.")
        raise UserError(f"{file} is a safetensors file, but not a model of seqtk.")
    contents = contents_of(tensors, metadata, source=str(file))
    if "replay" in contents.info:
        raise UserError(f"{file} is a replay file, not a model.", f"To use it: seqtk-train replay={file}")
    return contents


def contents_of(tensors: Tensors, metadata: Mapping[str, Any], *, source: str) -> ModelFile:
    """Returns the contents of a model file from its tensors and metadata.

    Raises:
        UserError: If a part of the metadata is missing or has a wrong type.
    """
    for name in ("config", "assets", "info"):
        if not isinstance(metadata.get(name), dict):
            raise UserError(f"{source} is not a model of seqtk: its '{name}' is not a mapping.", DAMAGED)
    config, assets, info = metadata["config"], metadata["assets"], metadata["info"]
    if not all(isinstance(text, str) for text in assets.values()):
        raise UserError(f"{source} is not a model of seqtk: its 'assets' are not all strings.", DAMAGED)
    return ModelFile(tensors, config, assets, info)


def find(path: str | os.PathLike[str], *, key: str = "checkpoint") -> Path:
    """Returns the model file for `path`, the value of the key `key`.

    `path` is a model file, the folder of a checkpoint, or the folder of a run, which gives its best model or, if there
    is none, its latest. Raises UserError if there is no model.
    """
    path = Path(path)
    if path.is_file():
        return path
    candidates = [path / "model.safetensors", path / "best.safetensors"]
    latest = path / "latest"
    if latest.is_file():
        candidates.append(path / latest.read_text(errors="replace").strip() / "model.safetensors")
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        if path.is_dir():
            what, hint = describe(path)
            raise UserError(
                f"{key}={path} is {what}.",
                f"Set {key}= to a model file, the folder of one checkpoint, or the folder of a run.",
                *([f"To use it: {hint}"] if hint else []),
            )
        raise UserError(
            f"{key}={path} {'is not a regular file' if path.exists() else 'does not exist'}.",
            f"Set {key}= to a model file, the folder of one checkpoint, or the folder of a run.",
            *(() if path.exists() else near_path(path)),
        )
    return found


def checkpoint_folders(save_dir: Path) -> list[Path]:
    """Returns all checkpoints in the folder of a run, oldest first."""
    return sorted(path for path in save_dir.glob("update_*") if path.is_dir() and CHECKPOINT.fullmatch(path.name))


def tensors_of(model: nn.Module) -> Tensors:
    """Returns name → tensor for all parameters and persistent buffers. Tied weights appear under their first name."""
    persistent = set(model.state_dict())
    tensors: Tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def first_bad(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor with an infinite or NaN value, or None. Synchronizes the device once."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    finite = torch.stack([tensors[name].isfinite().all() for name in names]).tolist() if names else []
    return next((name for name, good in zip(names, finite, strict=True) if not good), None)


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copies `tensors` into the model. Raises UserError if a tensor is missing or unknown, or its shape differs."""
    own = tensors_of(model)
    for name in [*own, *tensors]:
        if name not in tensors or name not in own:
            verb = "has no tensor" if name not in tensors else "has an unknown tensor"
            raise UserError(f"{source} {verb} '{name}': the file is incomplete or of a different architecture.")
        if own[name].shape != tensors[name].shape:
            raise UserError(
                f"{source} is a different model: '{name}' is {list(tensors[name].shape)} in the file, "
                f"{list(own[name].shape)} in the model."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Writes one safetensors file atomically, with the values of `metadata` as JSON."""
    header = {name: json.dumps(value) for name, value in (metadata or {}).items()}
    contiguous = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    sums = {name: _tensor_checksum(name, tensor) for name, tensor in contiguous.items()}
    header[CHECKSUMS] = json.dumps({"header": _header_checksum(header), "tensors": sums})
    with atomic_file(path) as file:
        if is_special(Path(os.path.realpath(path))):
            file.write(serialize(contiguous, header))
            return
        mode = os.fstat(file.fileno()).st_mode
        try:
            save_file(contiguous, file.name, header)  # creates a new file, which only its owner can read
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            reason = os.strerror(int(number[1])) if number else str(error)
            raise OSError(int(number[1]) if number else errno.EIO, reason, str(path)) from error
        os.chmod(file.name, stat.S_IMODE(mode))


def load_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Returns the tensors and the metadata of one safetensors file. Raises UserError if it is missing or damaged.

    Verifies the checksums, if the file has them; files of other programs and of seqtk 0.1 have none.
    """
    with _opened(path) as file:
        tensors, metadata, sums = _contents(file)
    for name, tensor in tensors.items():
        _verify(path, name, tensor, sums)
    return tensors, metadata


def open_tensors(path: Path) -> TensorFile:
    """Reads the header of a safetensors file. Raises UserError if the file is missing or its header is damaged."""
    with _opened(path) as file:
        tensors, metadata, sums = _contents(file)
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return TensorFile(path, shapes, metadata, sums)


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a safetensors file without reading tensors. Raises UserError if the file is damaged."""
    with _opened(path) as file:
        return _metadata(file)[0]


def _contents(file: Any) -> tuple[Tensors, dict[str, Any], dict[str, int] | None]:
    """Returns (tensors, metadata, checksums or None) of a file. The values of a tensor are read when they are used."""
    tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata, sums = _metadata(file)
    if sums is not None and sums.keys() != tensors.keys():
        raise ValueError(f"The checksum of '{min(sums.keys() ^ tensors.keys())}' is wrong.")
    return tensors, metadata, sums


def _verify(path: Path, name: str, tensor: Tensor, sums: Mapping[str, int] | None) -> None:
    """Raises UserError if the checksum of a tensor differs from the one in `sums`."""
    if sums is not None and _tensor_checksum(name, tensor) != sums[name]:
        raise UserError(f"{path} is damaged or incomplete.", f"The checksum of '{name}' is wrong.", DAMAGED)


def _metadata(file: Any) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Returns (metadata of a file, checksums of its tensors or None)."""
    texts = dict(file.metadata() or {})
    sums = json.loads(texts.pop(CHECKSUMS, "null"))
    if sums is not None and sums.get("header") != _header_checksum(texts):
        raise ValueError("The checksum of the header is wrong.")
    return {name: json.loads(value) for name, value in texts.items()}, sums and sums["tensors"]


def _header_checksum(texts: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(sorted(texts.items())).encode())


def _tensor_checksum(name: str, tensor: Tensor) -> int:
    """Returns the CRC-32 of a tensor's bytes, name, type and shape. The speed is 2 GB/s on one core."""
    about = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(about))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, ValueError) as error:
        what, hint = describe(path)
        if "safetensors" in what or "model file" in what or path.suffix == ".safetensors":
            raise UserError(f"{path} is damaged or incomplete.", str(error).splitlines()[0], DAMAGED) from error
        raise UserError(
            f"{path} is {what}, not a model of seqtk.", *([f"To use it: {hint}"] if hint else [])
        ) from error
