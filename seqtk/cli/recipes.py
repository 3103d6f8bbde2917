"""seqtk-recipes: lists, shows and copies the shipped recipes. Does not import torch."""

import shutil
import sys
from pathlib import Path

import seqtk
from seqtk.cli.command import reporting_errors
from seqtk.cli.recipe_files import find_recipe, recipe_names
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

USAGE = """\
seqtk-recipes: List, show or copy the training recipes that come with seqtk.

Usage: seqtk-recipes ls                 list the names of recipes and what each trains
       seqtk-recipes show NAME       print one
       seqtk-recipes cp NAME FOLDER  copy one to edit; train with recipe=FOLDER/NAME.yaml
"""


def summary(path: Path) -> str:
    """Returns the first comment of a recipe, which describes what it trains."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").rstrip()


def run(arguments: list[str]) -> str:
    """Runs one subcommand and returns the text to print."""
    match arguments:
        case ["ls"]:
            width = max(map(len, recipe_names()), default=0)
            return "".join(f"{name:{width}}  {summary(find_recipe(name))}\n" for name in recipe_names())
        case ["show", name]:
            return find_recipe(name).read_text(encoding="utf-8", errors="replace")
        case ["cp", name, folder]:
            return f"{_copy(find_recipe(name), Path(folder))}\n"
        case ["ls", *_]:
            raise UserError("ls has no arguments.", "Usage: seqtk-recipes ls")
        case ["show" | "cp" as verb, *_]:
            wanted = {"show": "NAME", "cp": "NAME FOLDER"}[verb]
            raise UserError(
                f"{verb} requires {wanted}.",
                f"Usage: seqtk-recipes {verb} {wanted}",
                f"NAME is one of {', '.join(recipe_names())}.",
            )
        case ["--version"]:
            return f"seqtk-recipes {seqtk.__version__}\n"
        case ["-h" | "--help"] | []:
            return USAGE
        case [other, *_]:
            raise UserError(f"There is no subcommand '{other}'.", nearest(other, ["ls", "show", "cp"]))
    raise AssertionError(arguments)


def _copy(source: Path, folder: Path) -> Path:
    target = folder / source.name
    if target.exists():
        raise UserError(
            f"{target} already exists.", "Copy the recipe to a different folder, or remove the existing file."
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder.", "Set FOLDER to the folder to copy the recipe to.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def main(arguments: list[str] | None = None) -> None:
    """List, show or copy the recipes."""
    with reporting_errors("seqtk-recipes"):
        sys.stdout.write(run(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
