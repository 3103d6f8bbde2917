"""seqtk-recipes: the recipes that come with the package, and where any recipe is found. Imports nothing heavy."""

import importlib.resources
import shutil
import sys
from pathlib import Path

import seqtk
from seqtk.errors import UserError, nearest

USAGE = """\
seqtk-recipes: List, show or copy the training recipes that come with seqtk.

Usage: seqtk-recipes ls              their names and what each is
       seqtk-recipes show NAME       one as YAML
       seqtk-recipes cp NAME FOLDER  a copy to change; train with recipe=FOLDER/NAME.yaml
"""


def recipe_folder() -> Path:
    """Where the shipped recipes lie: in the package, which in a checkout links to `recipes/`."""
    return Path(str(importlib.resources.files("seqtk.conf").joinpath("recipe")))


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe: a shipped one by its name, anyone's by its path (with a folder, or ending in .yaml)."""
    path = Path(name)
    if path.suffix == ".yml":
        raise UserError(f"{name}: the name of a recipe's file ends in .yaml.", f"Rename it to {path.stem}.yaml.")
    if path.suffix != ".yaml" and len(path.parts) <= 1:
        if name not in recipe_names():
            raise UserError(
                f"There is no recipe called '{name}'.",
                nearest(name, recipe_names()),
                "A recipe of your own is given by its path: recipe=mine.yaml",
            )
        return recipe_folder() / f"{name}.yaml"
    path = (path if path.suffix == ".yaml" else path.with_name(f"{path.name}.yaml")).absolute()
    if not path.is_file():
        neighbours = [found.stem for found in path.parent.glob("*.yaml")]
        raise UserError(f"There is no recipe at {path}.", nearest(path.stem, {*recipe_names(), *neighbours}))
    return path


def summary(path: Path) -> str:
    """What a recipe says of itself in its first line."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").rstrip()


def run(arguments: list[str]) -> str:
    """The output of one subcommand."""
    match arguments:
        case ["ls"]:
            width = max(map(len, recipe_names()), default=0)
            return "".join(f"{name:{width}}  {summary(find_recipe(name))}\n" for name in recipe_names())
        case ["show", name]:
            return find_recipe(name).read_text(encoding="utf-8")
        case ["cp", name, folder]:
            return f"{_copy(find_recipe(name), Path(folder))}\n"
        case ["ls", *_]:
            raise UserError("Write: seqtk-recipes ls", "It takes nothing else.")
        case ["show" | "cp" as verb, *_]:
            wanted = {"show": "NAME", "cp": "NAME FOLDER"}[verb]
            raise UserError(f"Write: seqtk-recipes {verb} {wanted}", f"NAME is one of {', '.join(recipe_names())}.")
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
        raise UserError(f"{target} exists already.", "Copy into another folder, or remove it first.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def main(arguments: list[str] | None = None) -> None:
    """List, show or copy the shipped recipes."""
    from seqtk.cli.command import reporting_errors  # which looks recipes up here

    with reporting_errors("seqtk-recipes"):
        sys.stdout.write(run(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
