"""Config dataclasses ⇄ plain trees, the one place where a key or a value is checked.

A config is a frozen dataclass; a field whose type is the base of a registry is a *slot*, filled by any config of that
registry. In a plain tree (recipe, command line, checkpoint, log) a slot is a name, or a mapping with that name under
`kind`. Unknown keys fail by name with the nearest match. Nothing here knows where a tree came from.

A class may state `aliases: ClassVar[dict[str, tuple[str, ...]]]`: a key that stands for several others.
"""

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from seqtk.config.registry import REGISTRIES, registry_of
from seqtk.utils.errors import UserError, nearest

C = TypeVar("C")


def to_dict(config: Any) -> Any:
    """The plain tree of a config: dicts, lists and scalars, each slot with its `kind`, ready for JSON or YAML."""
    if dataclasses.is_dataclass(config):
        tree = {} if _kind(config) is None else {"kind": _kind(config)}
        return tree | {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return config.value if isinstance(config, enum.Enum) else config


def from_dict(config_type: type[C], tree: Mapping[str, Any]) -> C:
    """The config of `config_type` in which `tree`'s keys have its values and all others their defaults."""
    return merge(config_type(), tree)


def merge(config: C, tree: Mapping[str, Any], *, where: str = "") -> C:
    """A copy of `config` with every key of `tree` set; keys that stand for others are set last."""
    aliases: dict[str, tuple[str, ...]] = getattr(type(config), "aliases", {})
    for alias in sorted(set(aliases) & set(tree)):
        for target in stands_for(config, alias):
            if _holds(tree, target):
                raise UserError(f"'{where}{alias}' and '{where}{target}' are both given; the first sets the second.")
    for key in sorted(tree, key=lambda key: key in aliases):
        config = _set(config, str(key), tree[key], where)
    return config


def update(config: C, key: str, value: Any) -> C:
    """A copy of `config` with the dotted `key` set to `value`; a key inside a tuple is set in each of its elements."""
    return _set(config, key, value, "")


def takes_text(config: Any, key: str) -> bool:
    """Whether `key` holds text (or nothing), so that whatever is written for it is meant as text."""
    head, _, rest = key.partition(".")
    for target in getattr(type(config), "aliases", {}).get(head, ()):
        return takes_text(config, f"{target}.{rest}" if rest else target)
    hint = _hints(type(config)).get(head)
    if not rest:
        return hint is str or (hint is not None and set(typing.get_args(hint)) == {str, type(None)})
    inside = getattr(config, head, None)
    return any(takes_text(item, rest) for item in _configs_in(inside))


def keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key that `update` takes, aliases included."""
    found = []
    for name in [field.name for field in dataclasses.fields(config)]:
        found.append(prefix + name)
        for child in _configs_in(getattr(config, name)):
            found += keys(child, f"{prefix}{name}.")
    return list(dict.fromkeys([*found, *(prefix + alias for alias in getattr(type(config), "aliases", {}))]))


def stands_for(config: Any, key: str) -> list[str]:
    """The dotted keys that `key` sets, if it is an alias: those in between, and those of a nested alias, too."""
    head, _, rest = key.partition(".")
    targets = getattr(type(config), "aliases", {}).get(head, ())
    if targets:
        keys = [f"{target}.{rest}" if rest else target for target in targets]
        return [found for key in keys for found in (key, *stands_for(config, key))]
    inside = getattr(config, head, None)
    return [f"{head}.{found}" for found in stands_for(inside, rest)] if rest and _configs_in(inside) else []


def _set(config: C, key: str, value: Any, where: str) -> C:
    head, _, rest = key.partition(".")
    aliases: dict[str, tuple[str, ...]] = getattr(type(config), "aliases", {})
    if head in aliases:
        for target in aliases[head]:
            config = _set(config, f"{target}.{rest}" if rest else target, value, where)
        return config
    hints = _hints(type(config))
    if head not in hints:
        raise UserError(f"There is no key '{where}{head}'{_in_kind(config)}.", _nearest_key(head, config, where))
    current = getattr(config, head)
    full = f"{where}{head}"
    if rest and rest != "kind":
        new: Any = _set_inside(_default_of(hints[head]) if current is None else current, rest, value, full)
    else:
        new = _convert(hints[head], value, current, full)
    return dataclasses.replace(config, **{head: new})  # type: ignore[type-var]


def _set_inside(current: Any, rest: str, value: Any, where: str) -> Any:
    if isinstance(current, tuple) and _configs_in(current):
        return _set_in_each(current, rest, value, where)
    if not dataclasses.is_dataclass(current):
        raise UserError(f"'{where}' is {current!r}: there is no key '{where}.{rest}' inside it.")
    return _set(current, rest, value, f"{where}.")


def _default_of(hint: Any) -> Any:
    """What a key inside an optional config, which is not there, is set in: its defaults."""
    configs: list[Any] = [option for option in typing.get_args(hint) if dataclasses.is_dataclass(option)]
    return configs[0]() if len(configs) == 1 and registry_of(configs[0]) is None else None


def _set_in_each(configs: tuple[Any, ...], key: str, value: Any, where: str) -> tuple[Any, ...]:
    """The configs with `key` set in each that has it (kinds may differ along a pattern); at least one must."""
    head = key.partition(".")[0]
    able = [head in _hints(type(config)) or head in getattr(type(config), "aliases", {}) for config in configs]
    return tuple(
        _set(config, key, value, f"{where}.") if has or not any(able) else config
        for config, has in zip(configs, able, strict=True)
    )


def _convert(hint: Any, value: Any, current: Any, where: str) -> Any:
    """`value` as the type `hint`; a mapping for a nested config changes only the keys it names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, current, where)
    if origin is tuple:
        return _convert_tuple(arguments, value, current, where)
    if origin is Literal:
        return _one_of(arguments, value, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(_one_of([member.value for member in hint], value, where))
    if dataclasses.is_dataclass(hint):
        return _convert_config(hint, value, current, where)
    return _convert_scalar(hint, value, where)


def _convert_union(options: tuple[Any, ...], value: Any, current: Any, where: str) -> Any:
    """The first option that takes `value`, tuples first for a list; where none does, the first one's error."""
    if value is None and type(None) in options:
        return None
    tuples: list[Any] = [option for option in options if typing.get_origin(option) is tuple]
    others: list[Any] = [option for option in options if option not in (type(None), *tuples)]
    errors = []
    for option in [*tuples, *others] if isinstance(value, list) else [*others, *tuples]:
        try:
            return _convert(option, value, current, where)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _convert_config(hint: Any, value: Any, current: Any, where: str) -> Any:
    registry = registry_of(hint)
    if dataclasses.is_dataclass(value) and isinstance(value, hint):
        return value
    if registry is not None and isinstance(value, str):
        return registry.config_type(value)()
    if not isinstance(value, Mapping):
        wanted = f"the name of one kind of {registry.kind}, or " if registry else ""
        raise UserError(f"'{where}' must be {wanted}a mapping, not {value!r}.")
    if registry is not None and "kind" in value:
        start = registry.config_type(str(value["kind"]))()
        value = {key: item for key, item in value.items() if key != "kind"}
    else:
        start = current if dataclasses.is_dataclass(current) else hint()
    return merge(start, value, where=f"{where}.")


def _convert_tuple(arguments: tuple[Any, ...], value: Any, current: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, Mapping) and "kind" not in value and _configs_in(current):
        for key, item in value.items():  # a mapping changes what it names in each, as the dotted keys do
            current = _set_in_each(current, str(key), item, where)
        return tuple(current)
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, None, where) for item in items)
    if len(items) != len(arguments):
        raise UserError(f"'{where}' must have {len(arguments)} values, not {value!r}.")
    return tuple(_convert(hint, item, None, where) for hint, item in zip(arguments, items, strict=True))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool) is (hint is bool):
        if hint is float and isinstance(value, int | float):
            return float(value)
        if hint is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, hint):
            return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise UserError(f"'{where}' must be {words.get(hint, hint)}, not {value!r}.")


def _one_of(allowed: Sequence[Any], value: Any, where: str) -> Any:
    if value not in allowed:
        raise UserError(f"'{where}' cannot be {value!r}.", nearest(str(value), map(str, allowed)))
    return value


def _kind(config: Any) -> str | None:
    for registry in REGISTRIES.values():
        if isinstance(config, registry.config_base) and registry.knows(type(config)):
            return registry.name_of(type(config))
    return None


def _in_kind(config: Any) -> str:
    kind = _kind(config)
    return f" in '{kind}'" if kind else ""


def _configs_in(value: Any) -> list[Any]:
    """The configs a field holds: itself, those of its tuple, or none."""
    return [item for item in (value if isinstance(value, tuple) else (value,)) if dataclasses.is_dataclass(item)]


def _holds(tree: Any, key: str) -> bool:
    """Whether the dotted `key` is set in a plain tree."""
    head, _, rest = key.partition(".")
    return isinstance(tree, Mapping) and head in tree and (not rest or _holds(tree[head], rest))


def _nearest_key(name: str, config: Any, where: str) -> str:
    """The last line about an unknown key: the one that ends most like it; of keys as close, the least far down."""
    name = name.replace("-", "_")
    here = [*_hints(type(config)), *getattr(type(config), "aliases", {})]

    def closeness(key: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, key.rpartition(".")[2], name).ratio(), -key.count(".")

    closest = max([*here, *keys(config)], key=closeness, default="")
    return f"Did you mean '{where}{closest}'?" if closeness(closest)[0] >= CLOSE else nearest(name, here)


CLOSE = 0.6
"""The share of letters in common, in their order, from which a name may have been meant (as `difflib` has it)."""


def _hints(config_type: type) -> dict[str, Any]:
    """The type of each field."""
    if config_type not in _HINTS:
        hints = typing.get_type_hints(config_type)
        _HINTS[config_type] = {field.name: hints[field.name] for field in dataclasses.fields(config_type)}
    return _HINTS[config_type]


_HINTS: dict[type, dict[str, Any]] = {}
