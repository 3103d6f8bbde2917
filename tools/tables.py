"""Writes the tables in README.md and docs/*.md that list the members of registries.

    python tools/tables.py            writes the tables
    python tools/tables.py --check    exits with code 1 if a table is not current

A table is written between two markers. The first marker selects the content of the table:

    <!-- members -->                 every registry with the names of its members
    <!-- members: attention -->      the members of one registry with their descriptions (and roles)
    <!-- members: recipe -->         the recipes with the first line of each recipe
    <!-- members: command -->        the commands with their descriptions
    <!-- /members -->                the end of each table
"""

import configparser
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path

import seqtk
from seqtk.cli.recipe_files import find_recipe, recipe_names
from seqtk.cli.recipes import summary
from seqtk.config.registry import REGISTRIES
from seqtk.metrics.base import metrics
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

ROOT = Path(__file__).resolve().parents[1]
MARKER = re.compile(r"(<!-- members(?:: ([\w ]+))? -->\n).*?(<!-- /members -->)", re.DOTALL)


def import_everything() -> None:
    """Imports all modules that register classes, which fills every registry."""
    for module in pkgutil.walk_packages(seqtk.__path__, "seqtk."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def commands() -> dict[str, str]:
    """Returns command in setup.cfg → its description, the start of the docstring of its function."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    found = {}
    for line in setup["options.entry_points"]["console_scripts"].strip().splitlines():
        name, _, target = line.partition("=")
        module, _, function = target.strip().partition(":")
        main: Callable[..., object] = getattr(importlib.import_module(module), function)
        found[name.strip()] = (inspect.getdoc(main) or "").splitlines()[0].partition(": ")[0].rstrip(".") + "."
    return found


def members(kind: str) -> list[tuple[str, str]]:
    """Returns (name, description) of every member of the registry `kind`, or of every recipe, command or metric."""
    if kind == "recipe":
        return [(name, summary(find_recipe(name))) for name in recipe_names()]
    if kind == "command":
        return list(commands().items())
    if kind == "metric":
        return [(name, " ".join((inspect.getdoc(metrics[name]) or "").split("\n\n")[0].split())) for name in metrics]
    if kind not in REGISTRIES:
        raise UserError(f"<!-- members: {kind} -->: there is no registry '{kind}'.", nearest(kind, REGISTRIES))
    registry = REGISTRIES[kind]
    found = []
    for name in registry:
        config_type = registry.config_type(name)
        doc = inspect.getdoc(config_type) or inspect.getdoc(registry.class_of(config_type)) or ""
        roles = getattr(registry.class_of(config_type), "roles", ())
        words = f" ({', '.join(str(role.name).lower() for role in roles)})" if roles else ""
        found.append((name, " ".join(doc.split("\n\n")[0].split()) + words))
    return found


def table(kind: str | None) -> str:
    """Returns a table in Markdown with the members of `kind` or, if it is None, with all registries."""
    if kind is None:
        kinds = [*REGISTRIES, "metric"]
        rows = [(kind, ", ".join(f"`{name}`" for name, _ in members(kind))) for kind in kinds]
        return "\n".join(["| kind | names |", "|---|---|", *(f"| {kind} | {names} |" for kind, names in rows)])
    rows = [(f"`{name}`", about.replace("|", r"\|")) for name, about in members(kind)]
    return "\n".join([f"| {kind} | description |", "|---|---|", *(f"| {name} | {about} |" for name, about in rows)])


def main(check: bool) -> int:
    """Writes the tables or, with `check`, prints the files with tables that are not current. Returns the exit code."""
    import_everything()
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        current = MARKER.sub(lambda found: f"{found[1]}{table(found[2])}\n{found[3]}", text)
        if current != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(current, encoding="utf-8")
    if stale:
        print(f"{'Not current' if check else 'Written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
