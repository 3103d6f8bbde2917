"""Recipes and key=value arguments → a typed config, and back to YAML.

Hydra reads the defaults lists and the arguments; seqtk.config.schema checks all values. Each recipe of a defaults list
is applied to the config in order, so a recipe that fills a slot with another kind replaces its parents' settings there.
"""

import math
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
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqtk.cli.recipe_files import recipe_folder, recipe_names
from seqtk.config import schema
from seqtk.utils.errors import UserError, nearest

C = TypeVar("C")


SEVERAL = object()  # the value of `key=a,b`, which is text or a mistake


@dataclass(frozen=True)
class Override:
    """One key=value argument."""

    key: str
    value: Any
    text: str  # the value as it was written


@dataclass(frozen=True)
class Layer:
    """What one file of a recipe's defaults list says."""

    path: Path
    tree: DictConfig


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Each `key=value` read by Hydra's grammar: numbers, true, null, quotes, [lists] and {mappings}.

    A value that the grammar cannot read and that opens no bracket or quote (`~/data`, `a=b`, `é`) is text as it stands.
    """
    parser = OverridesParser.create()
    return [_parse(parser, argument) for argument in arguments]


def _parse(parser: OverridesParser, argument: str) -> Override:
    key, equals, text = argument.partition("=")
    if not (equals and re.fullmatch(r"[\w-]+(\.[\w-]+)*", key)):
        advice = "--help shows every key." if equals else "In a shell, quote a value with spaces in it: 'key=two words'"
        if argument.startswith(("+", "~")):
            advice = "No key is added or removed: set it, key=value. --help shows every key."
        raise UserError(f"'{argument}' is not of the form key=value.", advice)
    try:
        parsed = parser.parse_override(argument)
    except HydraException:
        if text[:1] in ("[", "{", "'", '"'):
            raise UserError(
                f"The value in '{argument}' cannot be read.",
                f"Check its brackets, quotes and commas; in a shell, quote the whole: '{key}={text}'",
            ) from None
        return Override(key, text, text)
    if parsed.is_sweep_override():
        return Override(key, SEVERAL, text)
    return Override(key, parsed.value(), text)


def named_after(recipe: Path, config: C) -> C:
    """`config` with a save_dir of the recipe's name, if it has one: a recipe that builds on another shares no run."""
    if not hasattr(config, "save_dir"):
        return config
    return schema.update(config, "save_dir", f"{config.save_dir}/{recipe.stem}")


def recipe_layers(path: Path) -> list[Layer]:
    """The files that make up the recipe at `path`, in the order they are set: its defaults list, read by Hydra.

    An entry of that list is the name of a recipe beside `path`, or of a shipped one.
    """
    folders = [path.parent, recipe_folder()]
    escaped = str(folders[1]).replace("\\", "\\\\").replace("'", "\\'")
    try:
        with initialize_config_dir(str(path.parent), version_base="1.3"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*missing `_self_`")  # it then is last, as one would think
            defaults = (
                GlobalHydra.instance()
                .config_loader()
                .compute_defaults_list(
                    config_name=path.name, overrides=[f"hydra.searchpath=['file://{escaped}']"], run_mode=RunMode.RUN
                )
            )
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML.", " ".join(str(error).split())) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _defaults_error(path, error) from None
    except RecursionError:
        raise UserError(f"The defaults lists of {path} lead in a circle.") from None
    entries = [entry for entry in defaults.defaults if entry.config_path and not entry.config_path.startswith("hydra/")]
    return [_load(entry.config_path, entry.package, folders) for entry in entries]


def _defaults_error(path: Path, error: Exception) -> UserError:
    missing = getattr(error, "missing_cfg_file", None)
    if missing is None:
        return UserError(f"{path} cannot be read as a recipe.", str(error).strip().splitlines()[0])
    neighbours = {found.stem for found in path.parent.glob("*.yaml")} - {path.stem}
    return UserError(
        f"There is no recipe called '{missing}'.",
        nearest(str(missing), {*recipe_names(), *neighbours}),
        f"It is named in the defaults list of {path} or of a recipe named there.",
    )


def _load(name: str, package: str | None, folders: Sequence[Path]) -> Layer:
    file_name = name if name.endswith(".yaml") else f"{name}.yaml"
    path = next(folder / file_name for folder in folders if (folder / file_name).is_file())
    tree = OmegaConf.load(path)
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path} must hold keys and values.")
    tree.pop("defaults", None)
    for part in reversed(package.split(".") if package else []):
        tree = OmegaConf.create({part: tree})
    return Layer(path, tree)


def compose(config: C, layers: Sequence[Layer], overrides: Sequence[Override]) -> C:
    """`config` with the layers of a recipe set onto it, then each override, in order (kinds before their settings)."""
    whole = _whole(layers, overrides)
    for layer in layers:
        try:
            config = schema.merge(config, _interpolated(OmegaConf.to_container(layer.tree), whole))
        except UserError as error:
            raise UserError(*str(error).splitlines()[:2], f"(in the recipe {layer.path})") from None
    for override in _kinds_first(config, overrides):
        config = schema.update(config, override.key, _value(override, config))
    return config


def _kinds_first(config: Any, overrides: Sequence[Override]) -> list[Override]:
    """The overrides as written, but what chooses a kind before what is set inside it, which it would undo."""
    keys = [next(iter(schema.stands_for(config, override.key)), override.key) for override in overrides]

    def depth(pair: tuple[str, Override]) -> float:
        slot, value = pair[0].removesuffix(".kind"), pair[1].value
        is_choice = "kind" in value if isinstance(value, Mapping) else any(key.startswith(f"{slot}.") for key in keys)
        return slot.count(".") if is_choice else math.inf

    return [override for _, override in sorted(zip(keys, overrides, strict=True), key=depth)]


def value_of(key: str, layers: Sequence[Layer]) -> Any:
    """What a recipe says under a key at its top, None where it says nothing."""
    return next((layer.tree[key] for layer in reversed(layers) if key in layer.tree), None)


def _whole(layers: Sequence[Layer], overrides: Sequence[Override]) -> Any:
    """What `${key}` in a recipe refers to: all its layers in one tree, with the arguments that change a value in it."""
    whole = OmegaConf.to_container(OmegaConf.merge(*(layer.tree for layer in layers))) if layers else {}
    for override in overrides:
        *parents, leaf = override.key.split(".")
        node: Any = whole
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(leaf), str | int | float) and override.value is not SEVERAL:
            node[leaf] = override.value
    return whole


def _interpolated(value: Any, root: Any) -> Any:
    """`value` with each `${key}` in it replaced by what `root` holds under that key."""
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
        raise UserError(f"'{value}': {str(error).splitlines()[0]}.") from None


def _value(override: Override, config: Any) -> Any:
    """The override's value as its field wants it, with `${key}` replaced by what the config holds there so far."""
    if schema.takes_text(config, override.key) and not isinstance(override.value, str | list | dict | None):
        return override.text  # 2024_01, 1e5, true and "a, b" are names here
    if override.value is SEVERAL:
        raise UserError(
            f"'{override.key}={override.text}' gives {override.key} several values.",
            f"Write a list as {override.key}=[{override.text}].",
        )
    return _interpolated(override.value, _escaped(schema.to_dict(config)))


def to_yaml(config: Any) -> str:
    """The whole config as YAML; as a recipe it gives this config again."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(schema.to_dict(config))))


def _escaped(tree: Any) -> Any:
    """`tree` with `${` in its texts escaped, so that they stand for themselves."""
    if isinstance(tree, Mapping):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", tree)
