"""Composes recipes and key=value arguments into a typed config, and writes configs as YAML.

Hydra reads the defaults lists and the arguments; seqtk.config.schema checks all values. The recipes of a defaults list
are applied to the config in order. A recipe that changes the kind of a slot resets all settings of that slot.
"""

import copy
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqtk.cli.recipe_files import recipe_folder, recipe_names
from seqtk.config import schema
from seqtk.config.fields import written
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

C = TypeVar("C")


SWEEP = object()
"""The parsed value of `key=a,b`. In a text field, it is the text `a,b`. Other fields require `--multirun`."""

MAX_PARSED = 10_000
"""Maximum length of a value that is parsed, because parsing longer values takes seconds. They are text."""

_KEY = r"[\w-]+(\.[\w-]+)*"
_ARGUMENT = re.compile(rf"(?P<prefix>\+\+?|~|)(?P<key>{_KEY}|[\w/-]+(@{_KEY})?)(?:=(?P<text>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Override:
    """One argument: `key=value`, `+key=value`, `++key=value` or `~key`, as in Hydra.

    A typed config already has all keys, so `+` and `++` mean the same as `key=value`. `~key` removes the value that the
    recipe sets. `group=option` and `group@package=option` choose an option of a config group.
    """

    key: str
    value: Any
    text: str  # the value as it was written
    delete: bool = False


@dataclass(frozen=True)
class Layer:
    """The settings of one file of a recipe's defaults list."""

    path: Path
    tree: dict[str, Any]


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Parses each argument with Hydra's grammar: numbers, true, null, quotes, [lists] and {mappings}.

    A value that does not follow the grammar (`~/data`, `a=b`, `é`) is text.
    """
    parser = OverridesParser.create()
    return [_parse(parser, argument) for argument in arguments]


def _parse(parser: OverridesParser, argument: str) -> Override:
    found = _ARGUMENT.fullmatch(argument)
    if found is None or (found["text"] is None and found["prefix"] != "~"):
        raise UserError(
            f"'{written(argument)}' does not have the form key=value.",
            "--help lists all keys. Quote a value with spaces: 'key=two words'",
        )
    key, text = found["key"], found["text"] or ""
    if len(text) > MAX_PARSED:
        return Override(key, text, text)
    try:
        parsed = parser.parse_override(f"{key}={text}")
        value = SWEEP if parsed.is_sweep_override() else parsed.value()
    except (HydraException, ValueError, RecursionError):  # ValueError: the number has more digits than Python accepts
        value = text
    return Override(key, value, text, delete=found["prefix"] == "~")


def quoted(text: str) -> str:
    """Returns `text` as a quoted string of Hydra's grammar, where backslashes are special only before a quote."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def split_groups(overrides: Sequence[Override], recipe: Path | None) -> tuple[list[Override], list[Override]]:
    """Returns (overrides that choose an option of a config group, all other overrides).

    A group is a folder in the recipe's folder, or in the folder of the shipped recipes. An option is a file in the
    group.
    """
    folders = [*([recipe.parent] if recipe else []), recipe_folder()]

    def is_group(override: Override) -> bool:
        group = override.key.partition("@")[0].replace(".", "/")
        option = f"{override.text}.yaml"
        may_be = override.text and not os.path.isabs(option)  # an absolute path, such as save_dir=/a/b, is no option
        chosen = may_be and any(os.path.isfile(folder / group / option) for folder in folders)  # no error if too long
        return bool(chosen) or "/" in override.key or "@" in override.key

    groups = [override for override in overrides if is_group(override)]
    return groups, [override for override in overrides if override not in groups]


def with_default_save_dir(recipe: Path, config: C) -> C:
    """Returns the config with `save_dir` set to `{save_dir}/{name of the recipe}`, if it has this setting."""
    if not hasattr(config, "save_dir"):
        return config
    return schema.update(config, "save_dir", f"{config.save_dir}/{recipe.stem}")


def recipe_layers(path: Path | None, groups: Sequence[Override] = ()) -> list[Layer]:
    """Returns one layer for each file of the recipe's defaults list, in the order in which they are applied.

    An entry of the list names a recipe in the folder of `path`, or a shipped recipe. `groups` choose options of config
    groups. A group that is not in the defaults list is appended to it.
    """
    folders = [*([path.parent] if path else []), recipe_folder()]
    choices = [
        f"{'~' if group.delete else ''}{group.key}" + (f"={group.text}" if group.text else "") for group in groups
    ]
    try:
        with initialize_config_dir(str(folders[0]), version_base="1.3"), warnings.catch_warnings():
            # Without `_self_`, the recipe itself is applied last.
            warnings.filterwarnings("ignore", message=".*missing `_self_`")
            loader = GlobalHydra.instance().config_loader()

            def defaults_list(choices: list[str]) -> Any:
                searchpath = f"hydra.searchpath=[{quoted(f'file://{recipe_folder()}')}]"
                return loader.compute_defaults_list(
                    config_name=path.name if path else None, overrides=[searchpath, *choices], run_mode=RunMode.RUN
                )

            try:
                defaults = defaults_list(choices)
            except ConfigCompositionException as error:
                if not choices or "Could not override" not in str(error):
                    raise
                defaults = defaults_list([choice if choice.startswith("~") else f"+{choice}" for choice in choices])
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML.", " ".join(str(error).split())) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _defaults_error(path, error) from None
    except RecursionError:
        raise UserError(f"The defaults lists of {path} contain a cycle.") from None
    for override in defaults.config_overrides:  # Hydra takes the name of a group that does not exist for a key
        if override.key_or_group != "hydra.searchpath":
            raise UserError(
                f"There is no config group '{override.key_or_group}'.",
                "A group is a folder next to the recipe; GROUP=OPTION reads GROUP/OPTION.yaml.",
            )
    entries = [entry for entry in defaults.defaults if entry.config_path and not entry.config_path.startswith("hydra/")]
    return [
        _load(entry.config_path, entry.package, folders)
        for entry in entries
        if entry.config_path != "_dummy_empty_config_"
    ]


def _defaults_error(path: Path | None, error: Exception) -> UserError:
    missing = getattr(error, "missing_cfg_file", None)
    if missing is None:
        return UserError(f"{path or 'The command line'} is not a valid recipe.", str(error).strip().splitlines()[0])
    neighbors = {found.stem for found in path.parent.glob("*.yaml")} - {path.stem} if path else set()
    return UserError(
        f"There is no recipe called '{missing}'.",
        nearest(str(missing), {*recipe_names(), *neighbors}),
        f"Its name is in the defaults list of {path}, in a recipe of this list, or in an argument.",
    )


def _load(name: str, package: str | None, folders: Sequence[Path]) -> Layer:
    file_name = name if name.endswith(".yaml") else f"{name}.yaml"
    path = next(folder / file_name for folder in folders if (folder / file_name).is_file())
    tree: Any = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path} must be a mapping of keys to values.")
    tree.pop("defaults", None)
    for part in reversed(package.split(".") if package else []):
        tree = {part: tree}
    return Layer(path, tree)


def compose(config: C, layers: Sequence[Layer], overrides: Sequence[Override]) -> C:
    """Returns `config` after setting the values of a recipe's layers, and then the values of the overrides.

    Overrides are applied in order, except that a kind is set before its settings.
    """
    layers = _without_deleted(layers, [override for override in overrides if override.delete])
    overrides = [override for override in overrides if not override.delete]
    root = _interpolation_root(layers, overrides)
    for layer in layers:
        try:
            config = schema.merge(config, _interpolated(layer.tree, root))
        except UserError as error:
            raise UserError(*str(error).splitlines()[:2], f"The error is in the recipe {layer.path}.") from None
    recipe = config
    for override in _kinds_first(config, overrides):
        config = schema.update(config, override.key, _value(override, config))
    return _without_made_by(config, recipe)


def _without_made_by(config: C, recipe: C) -> C:
    """Removes `task.made_by`, the command that makes the recipe's data, if `task.data` was changed."""
    task, of_recipe = getattr(config, "task", None), getattr(recipe, "task", None)
    if task is None or not task.made_by or task.data == of_recipe.data or task.made_by != of_recipe.made_by:  # type: ignore[union-attr]
        return config
    return schema.update(config, "task.made_by", "")


def _without_deleted(layers: Sequence[Layer], deleted: Sequence[Override]) -> Sequence[Layer]:
    """Returns the layers without the keys of `~key` arguments. Raises UserError if no layer sets such a key."""
    layers = copy.deepcopy(list(layers))
    for override in deleted:
        leaf = override.key.rpartition(".")[2]
        parents = [_parent(layer.tree, override.key) for layer in layers]
        found = [node for node in parents if leaf in node and (not override.text or node[leaf] == override.value)]
        for node in found:
            del node[leaf]
        if not found:
            given = f"{override.key}={override.text}" if override.text else override.key
            raise UserError(
                f"~{given}: the recipe does not set this key.",
                "~key removes a setting of the recipe. Remove this argument.",
            )
    return layers


def _parent(tree: Any, key: str) -> dict[str, Any]:
    """Returns the mapping in a plain tree that contains the last part of a dotted key, or {} if there is none."""
    for part in key.split(".")[:-1]:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _kinds_first(config: Any, overrides: Sequence[Override]) -> list[Override]:
    """Sorts the overrides so that a kind precedes its settings, because setting a kind resets them."""
    keys = [next(iter(schema.stands_for(config, override.key)), override.key) for override in overrides]

    def depth(pair: tuple[str, Override]) -> float:
        slot, value = pair[0].removesuffix(".kind"), pair[1].value
        is_choice = "kind" in value if isinstance(value, Mapping) else any(key.startswith(f"{slot}.") for key in keys)
        return slot.count(".") if is_choice else math.inf

    return [override for _, override in sorted(zip(keys, overrides, strict=True), key=depth)]


def text_of(key: str, layers: Sequence[Layer], overrides: Sequence[Override]) -> str | None:
    """Returns the value that layers or overrides set for a top-level text key, or None. Does not compose the config."""
    values = [layer.tree[key] for layer in layers if key in layer.tree]
    values += [
        override.value if isinstance(override.value, str | None) else override.text
        for override in overrides
        if override.key == key
    ]
    text = _interpolated(values[-1], _interpolation_root(layers, overrides)) if values else None
    return None if text is None else str(text)


def _interpolation_root(layers: Sequence[Layer], overrides: Sequence[Override]) -> Any:
    """Returns the tree in which `${key}` is looked up: a recipe's merged layers, updated by the overrides."""
    root = OmegaConf.to_container(OmegaConf.merge(*(layer.tree for layer in layers))) if layers else {}
    for override in overrides:
        node, leaf = _parent(root, override.key), override.key.rpartition(".")[2]
        if isinstance(node.get(leaf), str | int | float) and override.value is not SWEEP:
            node[leaf] = override.value
    return root


def _interpolated(value: Any, root: Any) -> Any:
    """Returns `value` with each `${key}` in it replaced by the value of that key in `root`."""
    if isinstance(value, dict):
        return {key: _interpolated(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, root) for item in value]
    if not (isinstance(value, str) and "${" in value):
        return value
    try:
        found = OmegaConf.create({**root, "": value})[""]
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except OmegaConfBaseException as error:
        raise UserError(f"Interpolation of '{value}' failed: {str(error).splitlines()[0]}.") from None


def _value(override: Override, config: Any) -> Any:
    """Returns the parsed value of an override, or its text if the field is a string.

    Parsing would change strings such as 2024_01, 1e5, true, "a, b" and [x].txt. `${key}` is replaced by the current
    value of the key.
    """
    value, text = override.value, override.text
    if not isinstance(value, str | None) and (
        schema.takes_text(config, override.key)
        or (schema.takes_texts(config, override.key) and not isinstance(value, list))
    ):
        return text
    if value is SWEEP:
        raise UserError(
            f"{override.key}={written(text)} has several values.",
            f"A list is written {override.key}=[{written(text)}]. seqtk-train --multirun runs once for each value.",
        )
    if (
        isinstance(value, str)
        and value == text
        and text[:1] in ("[", "{", "'", '"')
        and not schema.takes_text(config, override.key)
    ):
        raise UserError(
            f"{override.key}={written(text)} cannot be parsed.",
            "Check brackets, quotes and commas, and quote the argument in a shell.",
        )
    return _interpolated(value, _escaped(schema.to_dict(config))) if "${" in text else value


def to_yaml(config: Any) -> str:
    """Returns the whole config as YAML. Used as a recipe, the YAML gives an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(schema.to_dict(config))))


def _escaped(tree: Any) -> Any:
    """Returns `tree` with every `${` in its strings escaped, so that it is not interpolated."""
    if isinstance(tree, Mapping):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", tree)
