"""Builds trained models and their tasks from model files, without the corpus or the recipe.

Call the functions with the module's name: `trained_model.load(path)`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from seqtk.checkpoint.model_file import ModelFile, read, set_tensors
from seqtk.config import legacy
from seqtk.models import Model, ModelConfig
from seqtk.tasks import Task, TaskConfig, tasks
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with its task."""

    task: Task
    model: Model
    config: dict[str, Any]
    """The training configuration as a plain tree."""
    info: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The parts of a configuration that define a model: its task and its architecture."""

    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> LoadedModel:
    """Builds the model at `path` and its task from the file alone, in evaluation mode on `device`."""
    contents = read(path)
    source = str(path)
    parts = parts_of(contents, source=source)
    task = task_of(contents, parts, source=source)
    with torch.random.fork_rng(devices=[]):  # the initial weights, which are replaced, are random
        model = task.model(parts.model)
    set_tensors(model, contents.tensors, source=source)
    return LoadedModel(task=task, model=model.to(device).eval(), config=contents.config, info=contents.info)


def parts_of(contents: ModelFile, *, source: str) -> Parts:
    """Returns the configs of task and model. Raises UserError if one of their keys is unknown."""
    try:
        tree = {part: contents.config.get(part) for part in ("task", "model")}
        for part, value in tree.items():
            if not isinstance(value, Mapping) or "kind" not in value:
                raise UserError(f"{part}: must be a mapping with the key 'kind'.")
        return legacy.from_dict(Parts, tree)
    except UserError as error:
        lines = str(error).splitlines()
        user_dir = contents.config.get("user_dir")
        if "called" in lines[0]:
            lines[1:] = [
                f"The model was trained with a plug-in. Set user_dir={user_dir} to load it."
                if user_dir
                else "If it is part of a plug-in, install the plug-in, or set user_dir."
            ]
        version = contents.info.get("version")
        raise UserError(f"{source} was written by seqtk {version}: {lines[0]}", *lines[1:2]) from error


def task_of(contents: ModelFile, parts: Parts, *, source: str) -> Task:
    """Builds the task of `contents` from its assets. Raises UserError if one is missing or damaged."""
    try:
        return tasks.build(parts.task, assets=contents.assets)
    except KeyError as error:
        raise UserError(f"{source} has no {error}, which its task requires: the file is incomplete.") from error
    except ValueError as error:
        raise UserError(f"{source} has a vocabulary or tokenizer that cannot be read.", str(error)) from error
