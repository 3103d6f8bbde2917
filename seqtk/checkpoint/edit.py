"""Creates model files from existing ones: averages of checkpoints, or models for longer inputs."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from seqtk.attention.resizing import Resizable, resize_configs, resize_tensor
from seqtk.checkpoint.model_file import ModelFile, checkpoint_folders, read, set_tensors, tensors_of
from seqtk.checkpoint.trained_model import Parts, parts_of, task_of
from seqtk.config import schema
from seqtk.models import Model
from seqtk.utils.errors import UserError
from seqtk.utils.file_kinds import describe
from seqtk.utils.suggestions import near_path


def average(paths: Sequence[str | os.PathLike[str]]) -> ModelFile:
    """Averages the weights of several models of one run in float64. Everything else comes from the last model.

    Raises UserError if the models are from different runs, or if a weight is not finite.
    """
    last = read(paths[-1])
    total: dict[str, Tensor] = {}
    updates = []
    for path in paths:
        each = read(path)
        if {name: tensor.shape for name, tensor in each.tensors.items()} != {
            name: tensor.shape for name, tensor in last.tensors.items()
        }:
            raise UserError(
                f"{path} and {paths[-1]} are different models: the names or shapes of their weights differ."
            )
        if each.assets != last.assets or each.config.get("seed") != last.config.get("seed"):
            raise UserError(f"{path} and {paths[-1]} come from different runs: their vocabularies or seeds differ.")
        for name, tensor in each.tensors.items():
            if not tensor.is_floating_point():
                continue
            if not bool(tensor.float().square().sum().isfinite()):  # with such weights, activations overflow too
                raise UserError(
                    f"{path} contains weights that are infinite, NaN or close to overflow. The first is in {name}.",
                    "The training diverged. Average earlier checkpoints, or train again with a lower optimizer.lr.",
                )
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
        updates.append(each.info.get("update"))
    mean = {
        name: (total[name] / len(paths)).to(tensor.dtype) if name in total else tensor
        for name, tensor in last.tensors.items()
    }
    return replace(last, tensors=mean, info={**last.info, "averaged": updates})


def resize(contents: ModelFile, *, max_length: int, source: str) -> ModelFile:
    """Returns a copy of the model whose attention layers accept `max_length` positions.

    Additional weights of a longer model are initialized with the run's seed. Raises UserError if no layer of the model
    limits the length, if all layers already have this limit, or if a layer cannot be resized.
    """
    parts = parts_of(contents, source=source)
    resized = replace(parts, model=resize_configs(parts.model, max_length=max_length))
    old, new = (_seeded_model(contents, each, source=source) for each in (parts, resized))
    limits = sorted({layer.max_length for _, layer in old.attention_layers() if layer.max_length is not None})
    if not limits:
        raise UserError(f"No attention layer of {source} has a max_length, so there is nothing to resize.")
    if resized == parts:
        raise UserError(f"The attention layers of {source} already have max_length={max_length}.")
    set_tensors(old, contents.tensors, source=source)  # raises UserError for weights of a different model
    initial = tensors_of(new)
    layers = tuple(f"{name}." for name, layer in new.attention_layers() if isinstance(layer, Resizable))
    tensors = {
        name: resize_tensor(tensor, new=initial[name]) if name.startswith(layers) else tensor
        for name, tensor in contents.tensors.items()
    }
    set_tensors(new, tensors, source=source)
    config = {**contents.config, **schema.to_dict(resized)}
    info = {**contents.info, "resized": {"from": limits, "to": max_length}}
    return replace(contents, tensors=tensors, config=config, info=info)


def checkpoints_of(path: str | os.PathLike[str]) -> list[Path]:
    """Returns the checkpoints of the run at `path`, oldest first, up to the one that the file `latest` names.

    `path` is the folder of the run, or a model file or checkpoint in it. Raises UserError if there is no checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"checkpoint={path} does not exist.", "Set it to the folder of a run (save_dir).", *near_path(path)
        )
    inside = next((place for place in (path, *path.absolute().parents[:2]) if (place / "latest").is_file()), path)
    latest = inside / "latest"
    newest = latest.read_text(errors="replace").strip() if latest.is_file() else None
    found = [folder for folder in checkpoint_folders(inside) if newest is None or folder.name <= newest]
    if not found:
        raise UserError(
            f"checkpoint={path} contains no checkpoints of a run.",
            *([f"The file is {describe(path)[0]}."] if path.is_file() else []),
            "Set checkpoint= to the folder of a run (save_dir), or to several model files separated by commas.",
        )
    return found


def _seeded_model(contents: ModelFile, parts: Parts, *, source: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(contents.config.get("seed", 1))
        return task_of(contents, parts, source=source).model(parts.model)
