"""The layout of the package: imports follow setup.cfg, classes are registered, public names have docstrings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "seqtk"
SOURCES = sorted(path for folder in ("seqtk", "tests", "tools") for path in (ROOT / folder).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES if path.is_relative_to(PACKAGE)}

MAX_LINES = 600
LONG_FILES = {
    "seqtk/testing/laws.py": "One list of laws that share helpers.",
    "tests/unit/ops/test_naive.py": "One list of operations whose tests share helpers.",
}
"""File that may be longer → reason."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_by(tree: ast.Module) -> set[str]:
    """Returns the dotted names of the modules that a module imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def registers(tree: ast.Module) -> bool:
    """Returns True if importing the module registers a class."""
    calls = [node.func for statement in tree.body for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr == "register" for call in calls)


def registering_packages() -> list[Path]:
    """Returns the packages whose modules register classes."""
    return sorted({path.parent for path, tree in TREES.items() if registers(tree)} - {PACKAGE / "cli"})


def public_definitions(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Yields the classes and functions of a module whose names have no leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node


class TestImports:
    def test_imports_follow_the_contracts_in_setup_cfg(self) -> None:
        """Runs import-linter, which checks the contracts in setup.cfg."""
        program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        done = subprocess.run([sys.executable, "-c", program, "--no-cache"], cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_imports_are_absolute(self) -> None:
        for path, tree in TREES.items():
            for node in ast.walk(tree):
                assert not (isinstance(node, ast.ImportFrom) and node.level), f"{relative(path)}:{node.lineno}"

    @pytest.mark.parametrize("folder", registering_packages(), ids=relative)
    def test_packages_import_modules_that_register_classes(self, folder: Path) -> None:
        """Importing a package must register all of its classes."""
        package = ".".join(folder.relative_to(ROOT).parts)
        imported = {name for path, tree in TREES.items() if path.parent == folder for name in imported_by(tree)}
        for path, tree in TREES.items():
            if path.parent == folder and registers(tree):
                assert f"{package}.{path.stem}" in imported, f"{relative(path)} is not imported in {package}"


def test_only_listed_files_exceed_the_line_limit() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name for name, lines in lengths.items() if lines > MAX_LINES} <= set(LONG_FILES)


def test_public_names_have_docstrings() -> None:
    missing = [relative(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    for path, tree in TREES.items():
        missing += [
            f"{relative(path)}: {node.name}" for node in public_definitions(tree) if not ast.get_docstring(node)
        ]
    assert not missing, "\n".join(["without a docstring:", *missing])
