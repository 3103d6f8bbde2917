"""What the package says of itself is so: its dependencies, its commands, and that nothing in it runs what it reads."""

import ast
import configparser
import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from seqtk.cli.recipe_files import recipe_folder, recipe_names
from seqtk.corpora import CORPORA
from tests.architecture.test_structure import PACKAGE, ROOT, TREES, imported_by, relative

MODULE_OF = {"hydra-core": {"hydra", "omegaconf", "yaml"}}
"""Distribution → its modules and those of what it needs itself, where they are not named like it."""

IMPORTED_BY_OTHERS = {"tensorboard"}
"""torch.utils.tensorboard imports it."""

DANGEROUS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
    "np.load",
}


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def scripts() -> dict[str, str]:
    """Command → the function that it runs."""
    lines = setup()["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(line.split(" = ") for line in lines)


def test_dependencies_are_used_and_imports_declared() -> None:
    extras = setup()["options.extras_require"]
    requirements = [*setup()["options"]["install_requires"].strip().splitlines(), *extras["plot"].strip().splitlines()]
    distributions = [re.split(r"[<>=]", requirement)[0] for requirement in requirements]
    declared = {name: MODULE_OF.get(name, {name}) for name in distributions}
    imported = {name.split(".")[0] for tree in TREES.values() for name in imported_by(tree)}
    foreign = imported - set(sys.stdlib_module_names) - {"seqtk"}
    assert foreign <= set().union(*declared.values())
    unused = [name for name, modules in declared.items() if not modules & foreign]
    assert set(unused) == IMPORTED_BY_OTHERS


@pytest.mark.parametrize(("name", "target"), scripts().items())
def test_commands_are_there(name: str, target: str) -> None:
    module, function = target.split(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    assert any(isinstance(node, ast.FunctionDef) and node.name == function for node in TREES[path].body), name


@pytest.mark.parametrize("name", recipe_names())
def test_the_command_that_makes_a_recipes_corpus_exists(name: str) -> None:
    tree = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    task = tree.get("task") or {}
    if "made_by" in task:
        assert task["made_by"].split()[0] in scripts()
    published = [corpus.name for corpus in CORPORA.values() if task.get("data") == f"data-bin/{corpus.databin}"]
    if published:
        assert task["made_by"] == f"seqtk-prepare {published[0]}"


def test_nothing_runs_what_it_reads() -> None:
    """No unpickling, no evaluation of text; torch.load only of weights."""
    for path, tree in TREES.items():
        assert not [name for name in imported_by(tree) if name.startswith("pickle.")], relative(path)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            where = f"{relative(path)}:{call.lineno}: {name}"
            assert name not in DANGEROUS, where
            if name == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert keywords.get("weights_only") == "True", where


def test_no_tracked_file_names_a_machine() -> None:
    """No absolute path of somebody's machine, and no host that packages come from."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, text=True, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(
        r"(?<![\w.])/(work|home|root|Users|mnt)/\w|index-url|https?://[\w.-]*(pypi|pythonhosted)[\w.-]*"
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        found = forbidden.search(path.read_bytes().decode("utf-8", errors="ignore"))
        assert found is None, f"{name}: {found and found.group()}"


def test_the_package_is_what_the_wheel_holds() -> None:
    """Every folder with modules is a package, or `find:` leaves it out."""
    for path in TREES:
        assert (path.parent / "__init__.py").is_file(), relative(path)
    assert (PACKAGE / "py.typed").is_file()


def configs_in(hint: typing.Any) -> list[typing.Any]:
    """The configs that a field of this type holds."""
    return [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]


def configs_of(config_type: type) -> set[type]:
    """It and the configs in its fields, to any depth."""
    inside = [kind for hint in typing.get_type_hints(config_type).values() for kind in configs_in(hint)]
    return {config_type}.union(*map(configs_of, inside))
