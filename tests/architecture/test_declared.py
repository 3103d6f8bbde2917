"""Declared dependencies, commands, recipes and packages are correct, and no code unpickles or evaluates files."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seqtk.cli.recipe_files import recipe_folder, recipe_names
from seqtk.corpora import CORPORA
from tests.architecture.test_structure import PACKAGE, ROOT, TREES, imported_by, relative

MODULES = {"hydra-core": {"hydra", "omegaconf"}, "PyYAML": {"yaml"}}
"""Distribution → its modules, if their names are different. Hydra includes OmegaConf."""

INDIRECT = {"tensorboard"}
"""Distributions that torch.utils.tensorboard requires and seqtk does not import."""

UNSAFE_CALLS = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
}

MACHINE = re.compile(r"(?<![\w.])/(work|home|root|Users|mnt)/\w|index-url|https?://[\w.-]*(pypi|pythonhosted)[\w.-]*")
"""An absolute path on one machine, or a host of a package index."""


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements() -> list[str]:
    """Returns the distributions that the package and its extras for users require."""
    extras = setup()["options.extras_require"]
    lines = setup()["options"]["install_requires"] + extras["plot"] + extras["wandb"]
    return [re.split(r"[<>=]", line)[0] for line in lines.split()]


def scripts() -> dict[str, str]:
    """Returns command → `module:function`."""
    lines = setup()["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(line.split(" = ") for line in lines)


class TestSetup:
    def test_declared_dependencies_equal_imported_packages(self) -> None:
        declared = {name: MODULES.get(name, {name}) for name in requirements()}
        imported = {name.split(".")[0] for tree in TREES.values() for name in imported_by(tree)}
        third_party = imported - set(sys.stdlib_module_names) - {"seqtk"}
        assert third_party <= set().union(*declared.values())
        assert {name for name, modules in declared.items() if not modules & third_party} == INDIRECT

    def test_constraints_cover_the_dependencies(self) -> None:
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        assert set(requirements()) <= {line.split("==")[0] for line in lines}

    @pytest.mark.parametrize(("name", "target"), scripts().items())
    def test_functions_of_declared_commands_exist(self, name: str, target: str) -> None:
        module, function = target.split(":")
        path = ROOT / (module.replace(".", "/") + ".py")
        assert any(isinstance(node, ast.FunctionDef) and node.name == function for node in TREES[path].body), name

    def test_folders_with_modules_are_packages(self) -> None:
        """`packages = find:` does not add folders without `__init__.py` to the wheel."""
        for path in TREES:
            assert (path.parent / "__init__.py").is_file(), relative(path)
        assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", recipe_names())
def test_commands_named_in_recipes_exist(name: str) -> None:
    tree = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    task = tree.get("task") or {}
    if "made_by" in task:
        assert task["made_by"].split()[0] in scripts()
    published = [corpus.name for corpus in CORPORA.values() if task.get("data") == f"data-bin/{corpus.databin}"]
    if published:
        assert task["made_by"] == f"seqtk-prepare {published[0]}"


def test_package_calls_no_pickle_eval_or_exec() -> None:
    """torch.load requires weights_only=True, and np.load allow_pickle=False."""
    safe = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
    for path, tree in TREES.items():
        assert not [name for name in imported_by(tree) if name.startswith("pickle.")], relative(path)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            where = f"{relative(path)}:{call.lineno}: {name}"
            assert name not in UNSAFE_CALLS, where
            if name in safe:
                key, value = safe[name]
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}.get(key) == value, where


def test_no_tracked_file_has_a_local_path() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, text=True, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        found = MACHINE.search(path.read_bytes().decode("utf-8", errors="ignore"))
        assert found is None, f"{name}: {found and found.group()}"
