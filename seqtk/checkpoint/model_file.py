"""A trained model as one file: safetensors, with the config and the task's assets as JSON in its header.

Weights only, complete, and inert: reading it runs nothing, and it needs neither the corpus nor the recipe.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seqtk import __version__
from seqtk.config import schema
from seqtk.models import Model
from seqtk.tasks import Task, tasks
from seqtk.tasks.base import Assets
from seqtk.training.config import TrainConfig
from seqtk.utils.errors import UserError, near_path

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Export:
    """What one file holds."""

    tensors: Tensors
    config: dict[str, Any]
    """The plain tree of the run's TrainConfig."""
    assets: Assets
    info: dict[str, Any]
    """Where the model comes from: update, epoch, figures, seqtk's version."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be used, with the task that can read and write its tokens."""

    model: Model
    task: Task
    config: TrainConfig
    info: dict[str, Any]


def tensors_of(model: nn.Module) -> Tensors:
    """Every parameter and saved buffer once, by its first name; tied weights appear under one name."""
    persistent = set(model.state_dict())
    tensors: Tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into the model. Raises UserError naming a tensor that is missing, unknown or of another shape."""
    own = tensors_of(model)
    for name in [*own, *tensors]:
        if name not in tensors or name not in own:
            there = "lacks" if name not in tensors else "has an unknown"
            raise UserError(f"{source} {there} '{name}': it is of another model, or not whole.")
        if own[name].shape != tensors[name].shape:
            raise UserError(
                f"{source} is of another model: '{name}' is {list(tensors[name].shape)} there, "
                f"{list(own[name].shape)} here."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write one safetensors file, whole or not at all."""
    # Without an entry it has to be None: of no tensors and an empty one safetensors 0.8 makes a file it cannot read.
    header = {name: json.dumps(value) for name, value in (metadata or {}).items()} or None
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary, header)
        os.replace(temporary, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        reason = os.strerror(int(number[1])) if number else str(error)
        raise OSError(int(number[1]) if number else errno.EIO, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the metadata of one safetensors file. Raises UserError if it is missing or not whole."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _metadata(file)  # noqa: SIM118


def read_info(path: Path) -> dict[str, Any]:
    """Where the model in the file at `path` comes from; nothing else is read. Raises UserError if it is not whole."""
    with _opened(path) as file:
        return dict(_metadata(file).get("info", {}))


def _metadata(file: Any) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in (file.metadata() or {}).items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file.", str(error).splitlines()[0]) from error


def save_export(path: Path, tensors: Tensors, *, config: TrainConfig, assets: Assets, info: dict[str, Any]) -> None:
    """Write a model as one file from which `load_model` makes it again."""
    write_export(path, Export(tensors, schema.to_dict(config), assets, {"version": __version__, **info}))


def write_export(path: Path, export: Export) -> None:
    """Write what `read_export` reads."""
    save_tensors(path, export.tensors, {"config": export.config, "assets": export.assets, "info": export.info})


def read_export(path: str | os.PathLike[str]) -> Export:
    """What the file at `path` holds; of a checkpoint folder its model, of a save_dir its best or else its latest."""
    file = model_file(Path(path))
    tensors, metadata = load_tensors(file)
    if not {"config", "assets", "info"} <= metadata.keys():
        raise UserError(f"{file} holds tensors but no seqtk model.", "seqtk-import-fairseq reads fairseq checkpoints.")
    return Export(tensors=tensors, config=metadata["config"], assets=metadata["assets"], info=metadata["info"])


def model_file(path: Path) -> Path:
    """The model's file that `path` stands for. Raises UserError if there is none."""
    if path.is_file():
        return path
    candidates = [path / "model.safetensors", path / "best.safetensors"]
    if (path / "latest").is_file():
        candidates.append(path / (path / "latest").read_text(errors="replace").strip() / "model.safetensors")
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        what = "holds no model" if path.is_dir() else "is not there"
        raise UserError(
            f"The checkpoint {path} {what}.",
            "It is a file, one checkpoint's folder, or a save_dir.",
            *(() if path.is_dir() else near_path(path)),
        )
    return found


def load_model(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> LoadedModel:
    """The model at `path`, in evaluation mode on `device`, with its task, built from the file alone."""
    export = read_export(path)
    config = config_of(export, source=str(path))
    try:
        task = tasks.build(config.task, assets=export.assets)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}, without which its task cannot work: it is not whole.") from error
    model = task.model(config.model)
    set_tensors(model, export.tensors, source=str(path))
    return LoadedModel(model=model.to(device).eval(), task=task, config=config, info=export.info)


def config_of(export: Export, *, source: str) -> TrainConfig:
    """The config in `export`. Raises UserError naming the key that this version does not know."""
    try:
        return schema.from_dict(TrainConfig, export.config)
    except UserError as error:
        lines = str(error).splitlines()
        if export.config.get("user_dir") and "called" in lines[0]:
            lines[1:] = [f"It was trained with user_dir={export.config['user_dir']}: give user_dir= to load that."]
        raise UserError(
            f"{source} was written by seqtk {export.info.get('version')}: {lines[0]}", *lines[1:2]
        ) from error


def average(paths: list[str]) -> Export:
    """The mean, in float32, of several models of one run; all else is the last one's."""
    exports = [read_export(path) for path in paths]
    last = exports[-1]
    for path, export in zip(paths, exports, strict=True):
        shapes = [{name: tensor.shape for name, tensor in item.tensors.items()} for item in (export, last)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path} and {paths[-1]} are not of one model: their tensors differ.")
        if export.assets != last.assets or export.config.get("seed") != last.config.get("seed"):
            raise UserError(f"{path} and {paths[-1]} are not of one run: their vocabularies or seeds differ.")
    mean: Tensors = {}
    for name, tensor in last.tensors.items():
        if tensor.is_floating_point():
            total = sum(export.tensors[name].double() for export in exports)
            mean[name] = (total / len(exports)).to(tensor.dtype)  # type: ignore[union-attr]
        else:
            mean[name] = tensor
    updates = [export.info.get("update") for export in exports]
    return Export(tensors=mean, config=last.config, assets=last.assets, info={**last.info, "averaged": updates})
