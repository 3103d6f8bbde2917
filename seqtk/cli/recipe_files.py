"""Finds recipes: shipped recipes by name, other recipes by path. Does not import torch."""

import importlib.resources
from collections.abc import Iterable
from pathlib import Path

from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest


def recipe_folder() -> Path:
    """Returns the folder of the shipped recipes, which is inside the package (in a checkout, a link to `recipes/`)."""
    return Path(str(importlib.resources.files("seqtk.conf").joinpath("recipe")))


def recipe_names() -> list[str]:
    """Returns the names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def _nearest(name: str, names: Iterable[str]) -> str:
    """Returns a line of advice: the recipe with the nearest name, or how to list all recipes."""
    line = nearest(name, names)
    return line if line.startswith("Did you mean") else "To list the shipped recipes, run seqtk-recipes ls."


def find_recipe(name: str) -> Path:
    """Returns the path of a recipe. `name` is the name of a shipped recipe, or the path of any other recipe.

    A path contains a folder or ends in .yaml. Raises UserError if there is no such recipe.
    """
    path = Path(name)
    if path.suffix == ".yml":
        raise UserError(f"recipe={name}: must end in .yaml.", f"Rename it to {path.stem}.yaml.")
    if path.suffix != ".yaml" and len(path.parts) <= 1:
        if name not in recipe_names():
            raise UserError(
                f"There is no recipe called '{name}'.",
                _nearest(name, recipe_names()),
                "For a recipe that is not shipped, set its path: recipe=mine.yaml",
            )
        return recipe_folder() / f"{name}.yaml"
    path = (path if path.suffix == ".yaml" else path.with_name(f"{path.name}.yaml")).absolute()
    if not path.is_file():
        neighbors = [found.stem for found in path.parent.glob("*.yaml")]
        raise UserError(f"There is no recipe at {path}.", _nearest(path.stem, {*recipe_names(), *neighbors}))
    return path
