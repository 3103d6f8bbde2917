"""Converts config dataclasses to and from plain trees. All keys and values are checked here.

A config is a frozen dataclass. A field whose type is the base of a registry is a *slot* for any config of the registry.
In a plain tree (recipe, command line, checkpoint, log) a slot is a name, or a mapping with this name under `kind`. An
unknown key is an error that names the nearest known key. A number out of its field's range (see `seqtk.config.fields`)
is an error that names the key as it was typed.

A config class may define three mappings:

- `aliases: ClassVar[dict[str, tuple[str, ...]]]`: an alias → the keys that it sets.
- `renamed: ClassVar[dict[str, str]]`: an old key → its new name, or `""` if it was removed. Both are dotted and
  relative to the class. Setting an old key is an error that names the new one; `seqtk.config.legacy` reads it.
- `advice: ClassVar[dict[str, str]]`: a key that does not exist but that users may try → the last line of the error.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from seqtk.config.fields import Range, check_number, range_of, written
from seqtk.config.registry import Registry, registry_of, slot_of
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest, nearest_key

C = TypeVar("C")


def to_dict(config: Any) -> Any:
    """Returns a config as a plain tree of dicts, lists and scalars, each slot with its `kind`, for JSON or YAML."""
    if dataclasses.is_dataclass(config):
        registry = slot_of(config)
        tree = {} if registry is None else {"kind": registry.name_of(type(config))}
        return tree | {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return config.value if isinstance(config, enum.Enum) else config


def from_dict(config_type: type[C], tree: Mapping[str, Any], *, key: str = "") -> C:
    """Returns the config with the values of `tree` and defaults for all other keys.

    Args:
        config_type: A config class, or the base class of a registry. For a base class, `tree` must have a `kind`.
        tree: The plain tree.
        key: The key of the config, for errors.
    """
    return typing.cast(C, _convert_config(config_type, tree, None, key))


def merge(config: C, tree: Mapping[str, Any], *, key: str = "") -> C:
    """Returns a copy of `config` with every key of `tree` set; aliases are set last. `key` is the key of `config`."""
    where = f"{key}." if key else ""
    aliases = _aliases(type(config))
    for old, new in renamed_keys(type(config)).items():
        if holds(tree, old):
            raise _renamed_error(where + old, new and where + new)
    for alias in sorted(set(aliases) & set(tree)):
        for target in stands_for(config, alias):
            if holds(tree, target):
                raise UserError(
                    f"'{where}{alias}' and '{where}{target}' are both set, but the first is an alias of the second.",
                    "Remove one of them.",
                )
    for name in sorted(tree, key=lambda name: name in aliases):
        config = _set(config, str(name), tree[name], f"{where}{name}")
    return config


def update(config: C, key: str, value: Any) -> C:
    """Returns a copy of `config` with the dotted `key` set to `value`.

    If the key is in a tuple of configs, it is set in each config.
    """
    return _set(config, key, value, key)


def takes_text(config: Any, key: str) -> bool:
    """Returns True if `key` is of type str (or None), so that its value is not parsed."""
    hint = _hint_at(config, key)
    return hint is str or set(typing.get_args(hint)) == {str, type(None)}


def takes_texts(config: Any, key: str) -> bool:
    """Returns True if the value of `key` is a tuple of any number of strings."""
    return bool(_hint_at(config, key) == tuple[str, ...])


def keys(config: Any, prefix: str = "") -> list[str]:
    """Returns every dotted key that `update` accepts, including aliases."""
    found = []
    for name in [field.name for field in dataclasses.fields(config)]:
        found.append(prefix + name)
        for child in _configs_in(getattr(config, name)):
            found += keys(child, f"{prefix}{name}.")
    for alias in _aliases(type(config)):
        found.append(prefix + alias)
        for target in stands_for(config, alias):
            for child in _configs_in(_value_at(config, target)):
                found += keys(child, f"{prefix}{alias}.")
    return list(dict.fromkeys(found))


def _value_at(config: Any, key: str) -> Any:
    """Returns the value of a dotted key, or None if the key does not exist."""
    for part in key.split("."):
        config = getattr(config, part, None)
    return config


def stands_for(config: Any, key: str) -> list[str]:
    """Returns the dotted keys that an alias sets, including nested aliases. Empty if `key` is not an alias."""
    head, _, rest = key.partition(".")
    targets = _aliases(type(config)).get(head, ())
    if targets:
        keys = [f"{target}.{rest}" if rest else target for target in targets]
        return [found for key in keys for found in (key, *stands_for(config, key))]
    inside = getattr(config, head, None)
    return [f"{head}.{found}" for found in stands_for(inside, rest)] if rest and _configs_in(inside) else []


def _set(config: C, key: str, value: Any, typed: str) -> C:
    """Returns a copy of `config` with `key` set.

    `typed` is the whole key as the user wrote it, for errors. Unlike `key`, it may begin with the keys of outer
    configs, and may contain an alias.
    """
    head, _, rest = key.partition(".")
    shown = typed.removesuffix(f".{rest}") if rest else typed
    for old, new in renamed_keys(type(config)).items():
        if key == old or key.startswith(f"{old}."):
            where = typed.removesuffix(key)
            raise _renamed_error(where + old, new and where + new)
    for target in _aliases(type(config)).get(head, ()):
        config = _set(config, f"{target}.{rest}" if rest else target, value, typed)
    if head in _aliases(type(config)):
        return config
    hints = hints_of(type(config))
    if head not in hints:
        registry = slot_of(config)
        inside = f" in '{registry.name_of(type(config))}'" if registry else ""
        here = [*hints, *_aliases(type(config))]
        where = shown.removesuffix(head)
        advice: str = getattr(type(config), "advice", {}).get(head, "")
        for name in (head, *rest.split(".")[-1:]):
            advice = advice or nearest_key(name, here, keys(config), prefix=where)
        raise UserError(f"There is no key '{shown}'{inside}.", advice)
    current = getattr(config, head)
    if rest and rest != "kind":
        new_value: Any = _set_inside(
            hints[head], default_of(hints[head]) if current is None else current, rest, value, shown, typed
        )
    else:
        new_value = _convert(hints[head], value, current, shown, range_of(type(config), head))
    return dataclasses.replace(config, **{head: new_value})  # type: ignore[type-var]


def _set_inside(hint: Any, current: Any, rest: str, value: Any, shown: str, typed: str) -> Any:
    if isinstance(current, tuple) and _configs_in(current):
        return _set_in_each(current, rest, value, typed)
    if not dataclasses.is_dataclass(current):
        registry = next(filter(None, map(registry_of, typing.get_args(hint))), None)
        advice = f"Also set {shown}, to one of {', '.join(sorted(registry))}." if registry and current is None else ""
        raise UserError(
            f"There is no key '{typed}': '{shown}' is {written(current)}{'' if advice else ', which has no keys'}.",
            advice,
        )
    return _set(current, rest, value, typed)


def default_of(hint: Any) -> Any:
    """Returns the default config of an optional field, or None. Its keys can be set while the field is null."""
    configs: list[Any] = [option for option in typing.get_args(hint) if dataclasses.is_dataclass(option)]
    return configs[0]() if len(configs) == 1 and registry_of(configs[0]) is None else None


def _set_in_each(configs: tuple[Any, ...], key: str, value: Any, typed: str) -> tuple[Any, ...]:
    """Sets `key` in each config that has this key. At least one config must have it; the kinds may differ."""
    head = key.partition(".")[0]
    has_key = [head in hints_of(type(config)) or head in _aliases(type(config)) for config in configs]
    return tuple(
        _set(config, key, value, typed) if has or not any(has_key) else config
        for config, has in zip(configs, has_key, strict=True)
    )


def _convert(hint: Any, value: Any, current: Any, key: str, limits: Range) -> Any:
    """Returns `value` converted to the type `hint`. A mapping for a nested config changes only the keys it contains."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, current, key, limits)
    if origin is tuple:
        return _convert_tuple(arguments, value, current, key, limits)
    if origin is Literal:
        return _one_of(arguments, value, key)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(_one_of([member.value for member in hint], value, key))
    if dataclasses.is_dataclass(hint):
        return _convert_config(hint, value, current, key)
    return _convert_scalar(hint, value, key, limits)


def _convert_union(options: tuple[Any, ...], value: Any, current: Any, key: str, limits: Range) -> Any:
    """Converts `value` to the first type of the union that accepts it (tuples first for a list)."""
    if value is None and type(None) in options:
        return None
    tuples: list[Any] = [option for option in options if typing.get_origin(option) is tuple]
    others: list[Any] = [option for option in options if option not in (type(None), *tuples)]
    errors = []
    for option in [*tuples, *others] if isinstance(value, list) else [*others, *tuples]:
        try:
            return _convert(option, value, current, key, limits)
        except UserError as error:
            errors.append(error)
    names = [str(name) for option in others for name in typing.get_args(option) if typing.get_origin(option) is Literal]
    if names and len(others) > 1:  # a number or a name
        raise UserError(f"{str(errors[0]).removesuffix('.')} or {', '.join(names)}.")
    raise errors[0]


def _convert_config(hint: Any, value: Any, current: Any, key: str) -> Any:
    registry = registry_of(hint)
    if dataclasses.is_dataclass(value) and isinstance(value, hint):
        return value
    if registry is not None and isinstance(value, str):
        return _default(registry, value, key)
    if not isinstance(value, Mapping):
        if registry is not None:
            raise UserError(f"{key}={written(value)}: must be the name of a registered {registry.kind} or a mapping.")
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        raise UserError(f"{key}={written(value)}: must be a mapping.", f"Its keys: {names}.")
    if registry is not None and "kind" in value:
        start = _default(registry, str(value["kind"]), key)
        value = {name: item for name, item in value.items() if name != "kind"}
    else:
        start = current if dataclasses.is_dataclass(current) else hint()
        if registry is not None and slot_of(start) is None:
            raise UserError(
                f"{key or registry.kind}={{{', '.join(map(str, value))}}}: the key 'kind' is missing.",
                f"Set it to the name of a registered {registry.kind}: {{kind: {next(iter(registry))}, …}}.",
            )
    return merge(start, value, key=key)


def _default(registry: Registry[Any], name: str, key: str) -> Any:
    """Returns the default config registered under `name`, after a check of its values, which may be of a plug-in."""
    if key and name not in registry and name not in registry.renamed:
        raise UserError(f"{key}={written(name)}: there is no such {registry.kind}.", nearest(name, registry))
    config = registry.config_type(name)()
    return merge(config, {field: to_dict(getattr(config, field)) for field in hints_of(type(config))}, key=key)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, current: Any, key: str, limits: Range) -> tuple[Any, ...]:
    if isinstance(value, Mapping) and "kind" not in value and isinstance(current, tuple) and _configs_in(current):
        for name, item in value.items():  # a mapping sets its keys in each config, as dotted keys do
            current = _set_in_each(current, str(name), item, f"{key}.{name}")
        return tuple(current)
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, None, key, limits) for item in items)
    if len(items) != len(arguments):
        raise UserError(f"{key}={written(value)}: must have {len(arguments)} values.")
    return tuple(_convert(hint, item, None, key, limits) for hint, item in zip(arguments, items, strict=True))


def _convert_scalar(hint: Any, value: Any, key: str, limits: Range) -> Any:
    if hint not in _SCALARS:
        raise UserError(
            f"{key}: settings of type {getattr(hint, '__name__', hint)} are not supported.",
            "Use bool, int, float, str, Literal, an enum, a tuple, or a config dataclass.",
        )
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool) is (hint is bool):
        if hint is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        # A larger integer does not fit into a float.
        if hint is float and isinstance(value, int) and value.bit_length() < 1000:
            value = float(value)
        if hint in (int, float) and isinstance(value, hint | int):
            check_number(value, limits, key=key)
        if isinstance(value, hint):
            return value
    raise UserError(f"{key}={written(value)}: must be {_SCALARS[hint]}.")


_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _one_of(allowed: Sequence[Any], value: Any, key: str) -> Any:
    if value not in allowed:
        raise UserError(f"{key}={written(value)}: must be one of {', '.join(map(str, allowed))}.")
    return value


def _renamed_error(old: str, new: str) -> UserError:
    return UserError(f"There is no key '{old}' any more.", *([f"It is now '{new}'."] if new else []))


def _hint_at(config: Any, key: str) -> Any:
    """Returns the type of the field at the dotted `key`, or None if there is no such field."""
    head, _, rest = key.partition(".")
    for target in _aliases(type(config)).get(head, ()):
        return _hint_at(config, f"{target}.{rest}" if rest else target)
    if not rest:
        return hints_of(type(config)).get(head)
    found = (_hint_at(item, rest) for item in _configs_in(getattr(config, head, None)))
    return next((hint for hint in found if hint is not None), None)


def _configs_in(value: Any) -> list[Any]:
    """Returns the configs in the value of a field: the value itself, the elements of a tuple, or an empty list."""
    return [item for item in (value if isinstance(value, tuple) else (value,)) if dataclasses.is_dataclass(item)]


def holds(tree: Any, key: str) -> bool:
    """Returns True if the dotted `key` is set in a plain tree."""
    head, _, rest = key.partition(".")
    return isinstance(tree, Mapping) and head in tree and (not rest or holds(tree[head], rest))


def _aliases(config_type: type) -> dict[str, tuple[str, ...]]:
    return getattr(config_type, "aliases", {})


def renamed_keys(config_type: type) -> dict[str, str]:
    """Returns the mapping `renamed` of a config class, or an empty one."""
    return getattr(config_type, "renamed", {})


def hints_of(config_type: type) -> dict[str, Any]:
    """Returns the type of each field of a config class."""
    if config_type not in _HINTS:
        hints = typing.get_type_hints(config_type)
        _HINTS[config_type] = {field.name: hints[field.name] for field in dataclasses.fields(config_type)}
    return _HINTS[config_type]


_HINTS: dict[type, dict[str, Any]] = {}
