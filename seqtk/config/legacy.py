"""Reads configs that an earlier version wrote: replaces renamed keys and kinds by their new names."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from seqtk.config import schema
from seqtk.config.registry import registry_of
from seqtk.config.schema import hints_of, holds, renamed_keys

C = TypeVar("C")


def from_dict(config_type: type[C], tree: Mapping[str, Any]) -> C:
    """Returns the config from a tree that this or an earlier version wrote; see `schema.from_dict`."""
    return schema.from_dict(config_type, modernize(config_type, tree))


def modernize(hint: Any, value: Any) -> Any:
    """Returns `value`, a plain tree for the type `hint`, with renamed keys and kinds replaced by their new names."""
    options = [option for option in (hint, *_leaves(hint)) if isinstance(option, type)]
    config_type = next(filter(dataclasses.is_dataclass, options), None)
    if isinstance(value, list):
        return [modernize(hint, item) for item in value]
    if config_type is None:
        return value
    registry = registry_of(config_type)
    if isinstance(value, str):
        return registry.renamed.get(value, value) if registry else value
    if not isinstance(value, Mapping):
        return value
    tree = dict(value)
    if registry is not None and "kind" in tree:
        kind = str(tree["kind"])
        tree["kind"] = registry.renamed.get(kind, kind)
        config_type = registry.config_type(tree["kind"])
    for old, new in renamed_keys(config_type).items():
        if holds(tree, old):
            tree, item = _without(tree, old)
            tree = _with(tree, new, item) if new else tree
    hints = hints_of(config_type)
    return {name: modernize(hints[name], item) if name in hints else item for name, item in tree.items()}


def _leaves(hint: Any) -> Iterator[Any]:
    for argument in typing.get_args(hint):
        yield argument
        yield from _leaves(argument)


def _without(tree: Mapping[str, Any], key: str) -> tuple[dict[str, Any], Any]:
    """Returns (a copy of the tree without the dotted `key`, the value of that key)."""
    head, _, rest = key.partition(".")
    if not rest:
        return {name: item for name, item in tree.items() if name != head}, tree[head]
    inside, value = _without(tree[head], rest)
    return {**tree, head: inside}, value


def _with(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Returns a copy of the tree with the dotted `key` set."""
    head, _, rest = key.partition(".")
    return {**tree, head: _with(tree.get(head) or {}, rest, value) if rest else value}
