"""A trained model for another `max_length` of its attention layers."""

import dataclasses

import torch

from seqtk.checkpoint.model_file import Export, config_of, set_tensors, tensors_of
from seqtk.config import schema
from seqtk.models import Model
from seqtk.ops.resizing import Resizable, resize_configs, resize_tensor
from seqtk.tasks import tasks
from seqtk.training.config import TrainConfig
from seqtk.utils.errors import UserError


def resize(export: Export, *, max_length: int, source: str) -> Export:
    """The export of the same model whose attention layers take `max_length` positions.

    What a longer model needs beyond the trained weights is drawn from the run's seed. Raises UserError if no layer of
    the model has a longest input, if all have this one, or if one cannot be resized.
    """
    config = config_of(export, source=source)
    resized = dataclasses.replace(config, model=resize_configs(config.model, max_length=max_length))
    old, new = _model(config, export), _model(resized, export)
    limits = sorted({layer.max_length for _, layer in old.attention_layers() if layer.max_length is not None})
    if not limits:
        raise UserError(f"No attention layer of {source} has a longest input: it takes any.")
    if resized == config:
        raise UserError(f"The attention layers of {source} have max_length={max_length} already.")
    set_tensors(old, export.tensors, source=source)  # refuses what is not of this model
    drawn = tensors_of(new)
    layers = tuple(f"{name}." for name, layer in new.attention_layers() if isinstance(layer, Resizable))
    tensors = {
        name: resize_tensor(tensor, new=drawn[name]) if name.startswith(layers) else tensor
        for name, tensor in export.tensors.items()
    }
    set_tensors(new, tensors, source=source)
    info = {**export.info, "resized": {"from": limits, "to": max_length}}
    return Export(tensors=tensors, config=schema.to_dict(resized), assets=export.assets, info=info)


def _model(config: TrainConfig, export: Export) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return tasks.build(config.task, assets=export.assets).model(config.model)
