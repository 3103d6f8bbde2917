"""Writes and repeats replay files. A replay file reproduces a NaN or infinite loss or gradient without the corpus.

It is a model file with the weights before the failed update or validation, and with the micro-batches of all processes
as additional tensors. Like all model files, it contains no pickled objects.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from seqtk.attention import State
from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import ModelFile, Tensors, contents_of, load_tensors, set_tensors
from seqtk.checkpoint.state_tree import pack_tree, unpack_tree
from seqtk.checkpoint.trained_model import Parts, task_of
from seqtk.criterions import criterions
from seqtk.data.batch import Batch
from seqtk.tasks.base import Assets
from seqtk.training.config import TrainConfig
from seqtk.training.non_finite import Origin, origin_of, probing
from seqtk.training.parallel import Engine, TrainStep, seed_dropout, start_engine
from seqtk.training.resume import saved_config
from seqtk.utils.errors import UserError, how_many

PREFIX = "replay/"
"""The prefix of the names of tensors that are not weights."""

MicroBatch = tuple[Batch, State]
"""A micro-batch, and the recurrent state before it."""


@dataclass(frozen=True)
class Failure:
    """An update or validation whose loss, metric or gradient was not finite."""

    update: int
    """The number of updates before the failure."""
    training: bool
    """True for a training update, with dropout and a backward pass; False for a validation."""
    scale: float
    """The loss scale of the update."""
    ranks: Sequence[Sequence[MicroBatch]]
    """The micro-batches of each process."""

    def __str__(self) -> str:
        return f"Update {self.update + 1:,}" if self.training else f"The validation of update {self.update:,}"


def write_replay(path: Path, failure: Failure, weights: Tensors, *, config: dict[str, Any], assets: Assets) -> None:
    """Writes a replay file to `path`. `weights` are the weights before the failure."""
    tensors: Tensors = {}
    ranks = [[_packed(batch, state, tensors) for batch, state in rank] for rank in failure.ranks]
    replay = {"update": failure.update, "training": failure.training, "scale": failure.scale, "ranks": ranks}
    all_tensors = weights | {PREFIX + name: tensor for name, tensor in tensors.items()}
    model_file.write(path, ModelFile(all_tensors, config, assets, {"update": failure.update, "replay": replay}))


def read_replay(path: str) -> tuple[Failure, ModelFile]:
    """Reads a replay file. Returns the failure and the contents of the model file.

    Raises:
        UserError: If the file is missing, damaged, or not a replay file.
    """
    if not Path(path).is_file():
        problem = "is not a file" if Path(path).exists() else "does not exist"
        raise UserError(f"replay={path} {problem}.", "Set it to the file replay.safetensors of a run.")
    tensors, metadata = load_tensors(Path(path))
    batch_tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    contents = contents_of(weights, metadata, source=f"replay={path}")
    about = contents.info.get("replay")
    if about is None:
        raise UserError(f"replay={path} is not a replay file.", "A run writes one when an update is not finite.")
    try:
        ranks = [[_unpacked(entry, batch_tensors) for entry in rank] for rank in about["ranks"]]
        update, training, scale = int(about["update"]), bool(about["training"]), float(about["scale"])
        if update < 0 or not scale > 0:
            raise ValueError(f"update {update} with a loss scale of {scale:g}")
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"replay={path} is damaged or incomplete.", f"{type(error).__name__}: {error}.") from error
    return Failure(update, training, scale, ranks), contents


def replay(path: str, *, device: str) -> Iterator[str]:
    """Repeats the failure in a replay file. Yields lines about the result and the first tensor that is not finite.

    Raises:
        UserError: If the file is missing, damaged, or not a replay file.
    """
    failure, contents = read_replay(path)
    config = saved_config(contents, source=path)
    engine = start_engine(device=device)
    parts = Parts(task=config.task, model=config.model)
    model = task_of(contents, parts, source=path).model(config.model)
    set_tensors(model, contents.tensors, source=path)
    step = TrainStep(model.to(engine.device), criterions.build(config.criterion), autocast=config.autocast)
    try:
        loss, norm, origin = repeat(failure, step, config, engine=engine)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"replay={path} cannot be repeated.", str(error).partition("\n")[0]) from error
    examples = sum(len(batch.examples) for rank in failure.ranks for batch, _ in rank)
    of = how_many(len(failure.ranks), "process")
    yield f"{failure}: {how_many(examples, 'example')} of {of}, on {engine.device.type}."
    yield f"loss {loss:.6g}" + (f", gnorm {norm:.6g}" if failure.training else "")
    if math.isfinite(loss) and math.isfinite(norm):
        yield "Everything is finite."
    else:
        yield f"The loss or gradient is not finite, {origin}."
        yield f"Examples: {origin.examples}."


def repeat(failure: Failure, step: TrainStep, config: TrainConfig, *, engine: Engine) -> tuple[float, float, Origin]:
    """Repeats the failed update or validation.

    Returns:
        (loss, gradient norm (0 for a validation), where NaN or infinite numbers first appeared).
    """
    step.train(failure.training)
    size, total = len(failure.ranks), torch.zeros((), dtype=torch.float64, device=engine.device)
    weight = sum(batch.weight for rank in failure.ranks for batch, _ in rank) or 1
    with torch.set_grad_enabled(failure.training), probing(step) as probe:
        for rank, micro_batches in enumerate(failure.ranks):
            seed_dropout(config.seed, failure.update, rank, device=engine.device)
            for batch, state in micro_batches:
                loss = step(batch.to(engine.device), to_device(state, engine.device))[0]
                total += loss.detach().double()
                if failure.training:
                    (loss * (size * failure.scale / weight)).backward()
        origin = origin_of(probe, step, engine=engine)
    gradients = [p.grad for p in step.parameters() if p.grad is not None]
    norm = float(nn.utils.get_total_norm(gradients)) / (size * failure.scale) if gradients else 0.0
    return float(total) / weight, norm, origin


def to_device(state: State, device: torch.device) -> State:
    """Returns a copy of a recurrent state on `device`."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, state)


def _packed(batch: Batch, state: State, tensors: Tensors) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    batch_tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {
        "kind": type(batch).__name__,
        "tensors": pack_tree(batch_tensors, tensors),
        "others": {name: value for name, value in values.items() if name not in batch_tensors},
        "state": pack_tree(state, tensors),
    }


def _unpacked(entry: dict[str, Any], tensors: Tensors) -> MicroBatch:
    kinds = {kind.__name__: kind for kind in _subclasses(Batch)}
    if entry["kind"] not in kinds:
        raise UserError(
            f"There is no batch class '{entry['kind']}'.", "If a plug-in defines it, set user_dir= to the plug-in."
        )
    batch = kinds[entry["kind"]](**unpack_tree(entry["tensors"], tensors), **entry["others"])
    hints = get_type_hints(type(batch))
    for each in fields(batch):
        value = getattr(batch, each.name)
        if not isinstance(value, int | float if hints[each.name] is float else hints[each.name]):
            raise TypeError(f"{type(batch).__name__}.{each.name} must not be a {type(value).__name__}")
    return batch, unpack_tree(entry["state"], tensors)


def _subclasses(kind: type[Batch]) -> Iterator[type[Batch]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
