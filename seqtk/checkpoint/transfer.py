"""Initializes a new model from an old one: copies tensors by name and shape, and rows of tables by token or class.

The new model may have a different head, vocabulary, length or attention layer. Weights that fit are copied; the others
keep their initial values.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from seqtk.attention import Attention
from seqtk.attention.resizing import Resizable, resize_tensor
from seqtk.checkpoint.model_file import ModelFile, Tensors
from seqtk.checkpoint.module_table import aligned, pattern
from seqtk.data.vocabulary import Vocabulary
from seqtk.models import Model
from seqtk.modules.adaptive import AdaptiveEmbedding, AdaptiveHead
from seqtk.modules.embedding import Embedding, LearnedPositions
from seqtk.modules.head import LinearHead
from seqtk.modules.pooled_head import PooledHead
from seqtk.tasks.base import Assets
from seqtk.utils.errors import UserError, how_many


class Fate(StrEnum):
    """How a tensor of the new model was initialized, or that a tensor of the old model is unused."""

    TAKEN = "taken"
    RESIZED = "resized"
    """Some rows or positions of the tensor are copied, and the others are new."""
    FRESH = "fresh"
    """The old model has no tensor of this name and shape."""
    NOT_USED = "not used"
    """A tensor of the old model that the new model does not have."""


@dataclass(frozen=True)
class Transfer:
    """The weights of a new model that is initialized from an old one."""

    tensors: Tensors
    """Name → tensor, for all tensors of the new model."""
    fates: dict[str, Fate]
    """Name → fate, for the tensors of both models."""
    sizes: dict[str, int]
    """Name → number of elements, for the tensors of both models."""
    notes: list[str]
    """One line for each table whose tokens or classes differ and for each tensor whose number of positions differs."""

    def lines(self) -> list[str]:
        """Returns a table of copied, resized, new and unused tensors by module, followed by the notes."""
        fates_of: dict[str, set[Fate]] = defaultdict(set)  # by the pattern of a module
        for name, fate in self.fates.items():
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                fates_of[pattern(".".join(parts[:depth]))].add(fate)
        merged: dict[tuple[Fate, str], list[str]] = defaultdict(list)
        for module, names in self._modules(sorted(self.fates), depth=1):
            shared = pattern(module)  # one entry for all blocks, if they have the same fate
            merged[self.fates[names[0]], shared if len(fates_of[shared]) == 1 else module] += names
        order = list(Fate)
        rows = [
            (fate, module, how_many(len(names), "tensor"), f"{sum(self.sizes[name] for name in names):,} parameters")
            for (fate, module), names in sorted(merged.items(), key=lambda row: order.index(row[0][0]))
        ]
        return [*aligned(rows, left=2), *self.notes]

    def _modules(self, names: Sequence[str], depth: int) -> Iterator[tuple[str, list[str]]]:
        """Yields (module, names of its tensors) for the largest modules in which all tensors have the same fate."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name in names:
            groups[".".join(name.split(".")[:depth])].append(name)
        for module, members in groups.items():
            if len({self.fates[name] for name in members}) == 1:
                yield module, members
            else:
                yield from self._modules(members, depth + 1)


def transfer(old: ModelFile, model: Model, *, drawn: Tensors, assets: Assets, source: str) -> Transfer:
    """Copies the weights of an old model that fit into a new one.

    A tensor is copied if the old model has one of the same name and shape. If the vocabularies or classes differ, rows
    of embeddings and output layers are copied by token, and rows of a classifier by class. If lengths differ, learned
    positions and the weights of `Resizable` attention layers are copied for the positions that both have.

    Args:
        old: The old model.
        model: The new model.
        drawn: The initial tensors of `model`.
        assets: The assets of the task of `model`.
        source: The name of the old model in error messages.

    Raises:
        UserError: If no weight matrix of the old model fits.
    """
    tensors: Tensors = {}
    fates: dict[str, Fate] = {}
    notes: list[str] = []
    stored = _stored_names(old.tensors, model, drawn=drawn)
    before = old.tensors | {name: old.tensors[shared] for name, shared in stored.items()}
    by_row = _shared_rows(before, old.assets, model, drawn=drawn, assets=assets)
    limits = _length_limits(old, model, drawn=drawn)
    for name, new in drawn.items():
        tensors[name], fates[name] = new, Fate.FRESH
        if name in by_row:
            mixed, count = new.cpu().clone(), 0
            for table, new_rows, old_rows in by_row[name]:
                mixed[new_rows] = before[table][old_rows].to(mixed.dtype)
                count += len(new_rows)
            if count:
                tensors[name], fates[name] = mixed, Fate.RESIZED
                there = " + ".join(f"{len(before[table]):,}" for table, _, _ in by_row[name])
                notes.append(
                    f"{name}: copied {count:,} of {how_many(len(new), 'row')}, {len(new) - count:,} are new; "
                    f"the old model has {there}."
                )
        elif name not in before:
            continue
        elif before[name].shape == new.shape:
            tensors[name], fates[name] = before[name], Fate.TAKEN
        elif name in limits:
            tensors[name], fates[name] = resize_tensor(before[name], new=new.cpu()), Fate.RESIZED
            shapes = f"{list(before[name].shape)} in the old model, {list(new.shape)} in the new model"
            notes.append(f"{name}: {shapes}; copied the positions that both have.")
        if name in stored and fates[name] is not Fate.FRESH:
            notes.append(f"{name}: not in the old model; copied from {stored[name]}.")
    read = {table for sources in by_row.values() for table, _, _ in sources}
    fates |= {name: Fate.NOT_USED for name in old.tensors if name not in drawn and name not in read}
    if not any(fates[name] in (Fate.TAKEN, Fate.RESIZED) and tensor.ndim > 1 for name, tensor in drawn.items()):
        raise _nothing_fits(old, drawn, source=source)
    sizes = {name: tensor.numel() for name, tensor in {**old.tensors, **drawn}.items()}
    return Transfer(tensors, fates, sizes, notes)


def _stored_names(old: Tensors, model: Model, *, drawn: Tensors) -> dict[str, str]:
    """Returns new name → old name, for the tables of the new model that the old file does not contain.

    A file contains a table that several modules share under its first name only. A module does not share a table if the
    old file contains other tensors of the module, such as the head of a classifier.
    """
    found: dict[str, str] = {}
    last: list[str] = []
    for prefix, names, what in _tables(model):
        own = {name for name in old if name.startswith(f"{prefix}.")}
        if what == "token" and set(names) <= own:
            last = names
        elif what == "token" and len(names) == len(last) and own.isdisjoint(names) and own <= drawn.keys():
            found |= dict(zip(names, last, strict=True))
    return found | _stored_projections(old, model)


def _stored_projections(old: Tensors, model: Model) -> dict[str, str]:
    """Returns new name → old name, for the projections of an adaptive head that the old model shared with its input."""
    found: dict[str, str] = {}
    shared: list[str] = []
    for prefix, module in model.named_modules():
        if isinstance(module, AdaptiveEmbedding):
            shared = [f"{prefix}.projections.{band}.weight" for band in range(1, len(module.projections))]
        elif isinstance(module, AdaptiveHead) and f"{prefix}.classes" in old:
            names = [f"{prefix}.projections.{number}" for number in range(len(module.projections))]
            pairs = zip(names, shared, strict=False)
            found |= {name: stored for name, stored in pairs if name not in old and stored in old}
    return found


def _shared_rows(
    before: Tensors, old_assets: Assets, model: Model, *, drawn: Tensors, assets: Assets
) -> dict[str, list[tuple[str, Tensor, Tensor]]]:
    """Returns the rows to copy for each table whose tokens or classes changed.

    The result is table → [(old table, row numbers in the new table, row numbers in the old table)]. If several modules
    of the new model share a table, a row is copied from the first old table that has it.
    """
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, list[tuple[str, Tensor, Tensor]]] = {}
    missing: dict[str, dict[int, str]] = {}  # table → row that is not found yet → its label
    for _, names, what in _tables(model):
        now, then = _labels(assets, names[0], what), _labels(old_assets, names[0], what)
        if now is None or then is None or not set(names) <= before.keys():
            continue
        tables = [first_name[id(parameters[name])] for name in names]
        ends = accumulate(len(drawn[table]) for table in tables)
        old_ends = accumulate(len(before[name]) for name in names)
        for name, table, end, old_end in zip(names, tables, ends, old_ends, strict=True):
            here = dict(enumerate(now[end - len(drawn[table]) : end]))
            there = dict(enumerate(then[old_end - len(before[name]) : old_end]))
            wanted = missing.setdefault(table, here)
            if not wanted or before[name].shape[1:] != drawn[table].shape[1:]:
                continue
            if name == table and here == there:  # copy the whole table
                missing[table] = {}
                continue
            sources = found.setdefault(table, [])
            row = {label: number for number, label in there.items()}
            pairs = [(number, row[label]) for number, label in wanted.items() if label in row]
            if pairs:
                missing[table] = {number: label for number, label in wanted.items() if label not in row}
                new_rows, old_rows = torch.tensor(pairs).unbind(1)
                sources.append((name, new_rows, old_rows))
    return found


def _tables(model: Model) -> Iterator[tuple[str, list[str], Literal["token", "class"]]]:
    """Yields (module, names of its tables, "token" or "class") for modules whose tables have a row per token or class.

    A table that several modules share is yielded once for each of them.
    """
    for prefix, module in model.named_modules():
        tokens = module.tokens if isinstance(module, Embedding) else None
        if isinstance(module, PooledHead):
            yield from ((prefix, [f"{prefix}.linear.{part}"], "class") for part in ("weight", "bias"))
        elif isinstance(tokens, AdaptiveEmbedding):
            yield prefix, [f"{prefix}.tokens.bands.{band}.weight" for band in range(len(tokens.bands))], "token"
        elif isinstance(tokens, nn.Embedding):
            yield prefix, [f"{prefix}.tokens.weight"], "token"
        elif isinstance(module, AdaptiveHead):
            yield prefix, [f"{prefix}.bands.{band}" for band in range(len(module.bands))], "token"
        elif isinstance(module, LinearHead):
            yield prefix, [f"{prefix}.weight"], "token"


def _labels(assets: Assets, table: str, what: Literal["token", "class"]) -> list[str] | None:
    """Returns the tokens or classes of a table's rows.

    With two dictionaries, source tables use the source dictionary, and all other tables the target dictionary.
    """
    if what == "class":
        return assets["classes"].split("\n") if "classes" in assets else None
    side = "source" if table.startswith("source") else "target"
    dictionaries = [asset for asset in assets if asset.endswith(".dict")]
    chosen = f"{side}.dict" if f"{side}.dict" in assets else next(iter(dictionaries), None)
    return None if chosen is None else Vocabulary.from_text(assets[chosen]).tokens


def _length_limits(old: ModelFile, model: Model, *, drawn: Tensors) -> set[str]:
    """Returns the names of the tensors whose shape differs from the old model only in the number of positions."""
    found: set[str] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, LearnedPositions):
            length: int | None = module.table.num_embeddings
        else:
            length = module.max_length if isinstance(module, Attention) and isinstance(module, Resizable) else None
        if length is None:
            continue
        own = [name for name in drawn if name.startswith(f"{prefix}.") and name in old.tensors]
        other = [name for name in own if old.tensors[name].shape != drawn[name].shape]
        # if the width differs too, every tensor of an attention layer has a different shape
        if len(other) < len(own) or isinstance(module, LearnedPositions):
            found |= {name for name in other if _differs_along(old.tensors[name], drawn[name], size=length)}
    return found


def _differs_along(old: Tensor, new: Tensor, *, size: int) -> bool:
    """Returns True if two shapes differ only in axes that have `size` elements in the new tensor."""
    pairs = zip(old.shape, new.shape, strict=True) if old.ndim == new.ndim else ()
    different = [after for before, after in pairs if before != after]
    return bool(different) and set(different) == {size}


def _nothing_fits(old: ModelFile, drawn: Tensors, *, source: str) -> UserError:
    shared = next((name for name in drawn if name in old.tensors and drawn[name].ndim > 1), None)
    if shared is not None:
        example = (
            f"For example, '{shared}' is {list(old.tensors[shared].shape)} in the old model and "
            f"{list(drawn[shared].shape)} in the new model."
        )
    else:
        example = f"For example, it has '{next(iter(old.tensors), 'no tensors')}', the new model '{next(iter(drawn))}'."
    return UserError(
        f"{source} has no weight matrix whose name and shape exist in the new model.",
        example,
        "Set model and its sizes (model.dim, …) as in the old model, or use a different old model.",
    )
