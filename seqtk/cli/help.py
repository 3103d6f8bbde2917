"""Formats the page that `--help` prints: every key of a config with its value and its help text."""

import dataclasses
import enum
import inspect
import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal

from seqtk.config import schema
from seqtk.config.fields import help_of, written
from seqtk.config.registry import REGISTRIES, Registry, registry_of

KEY_WIDTH = 44
FEW = 6
"""The maximum number of choices that are listed in the row of a slot. Longer lists are at the end of the page."""


def help_text(program: str, about: str, config: Any, *, recipes: bool, first: str | None) -> str:
    """Returns the help page of a command. It shows the values of `config`."""
    title, _, body = inspect.cleandoc(about).partition("\n")
    head = "[recipe=NAME|FILE.yaml] " if recipes else f"[{first.upper()}] " if first else ""
    usage = [
        f"Usage: {program} {head}[key=value ...]",
        f"       {program} --cfg job ...   print the configuration as YAML",
        *(["       seqtk-recipes ls   list the recipes that come with seqtk"] if recipes else []),
    ]
    width = max(60, min(140, shutil.get_terminal_size((120, 24)).columns))
    rows = [_row(key, text, width) for key, text in _rows(config)]
    body = body.strip("\n")
    page = [f"{program}: {title}", *(["", body] if body else []), "", *usage, "", "Keys:", *rows]
    for registry in REGISTRIES.values():
        if len(list(registry)) > FEW and any(_end_of_page(registry) in text for _, text in _rows(config)):
            page += ["", f"{registry.kind.capitalize()}:", *(_row(*_kind(registry, name), width) for name in registry)]
    return "\n".join(page)


def _end_of_page(registry: Registry[Any]) -> str:
    return f"see '{registry.kind.capitalize()}' below"


def _kind(registry: Registry[Any], name: str) -> tuple[str, str]:
    """Returns (registered name, description of its config). The roles of an attention layer follow the description."""
    config_type = registry.config_type(name)
    roles = getattr(registry.class_of(config_type), "roles", ())
    about = (inspect.getdoc(config_type) or "").split("\n\n")[0]
    return name, " ".join([about, *([f"({', '.join(str(role.name).lower() for role in roles)})"] if roles else [])])


def _row(key: str, text: str, width: int) -> str:
    lines = textwrap.wrap(text, max(20, width - KEY_WIDTH - 4)) or [""]
    gap = "\n" + " " * (KEY_WIDTH + 4)
    return f"  {key:{KEY_WIDTH}}  {gap.join(lines)}".rstrip()


def _rows(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields ("key=value", help text) for each field. The fields of a nested config follow the field that has it."""
    hints = schema.hints_of(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inside = [item for item in (value if isinstance(value, tuple) else (value,)) if dataclasses.is_dataclass(item)]
        choices = list(dict.fromkeys(_choices(hints[field.name])))
        about = help_of(type(config), field.name)
        if choices:
            about += f" ({' | '.join(choices)})"
        if not inside or choices:
            yield f"{prefix}{field.name}={written(schema.to_dict(value))}", about.strip()
        elif about:
            yield f"{prefix}{field.name}", about
        optional = schema.default_of(hints[field.name]) if value is None else None
        for item in dict.fromkeys([*inside, *([] if optional is None else [optional])]):
            yield from _rows(item, f"{prefix}{field.name}.")
    for alias, targets in getattr(type(config), "aliases", {}).items():
        yield f"{prefix}{alias}=...", f"An alias of {', '.join(f'{prefix}{target}' for target in targets)}"


def _choices(hint: Any) -> Iterator[str]:
    """Yields the names that a field accepts: the names in its registry, or the values of a Literal."""
    if typing.get_origin(hint) is Literal:
        yield from map(str, typing.get_args(hint))
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        yield from (str(member.value) for member in hint)
    elif isinstance(hint, type):
        registry = registry_of(hint)
        names = list(registry or ())
        yield from names if registry is None or len(names) <= FEW else [_end_of_page(registry)]
    else:
        for argument in typing.get_args(hint):
            yield from _choices(argument)
