"""The layout holds: small files, imports that run downhill, everything registered is imported, all of it documented."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "seqtk"
LONGEST = 400  # lines

SOURCES = sorted(path for folder in ("seqtk", "tests", "tools") for path in (ROOT / folder).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES if path.is_relative_to(PACKAGE)}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_imports_run_downhill() -> None:
    """The contracts in setup.cfg."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_import_is_relative() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{relative(path)}:{node.lineno}"


def registers(tree: ast.Module) -> bool:
    """Whether the module calls some registry's `register`."""
    return any(isinstance(node, ast.Attribute) and node.attr == "register" for node in ast.walk(tree))


def imported_by(tree: ast.Module) -> set[str]:
    """The modules that it imports, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", ["attention", "criterions", "models", "optim", "tasks"])
def test_what_registers_is_imported_by_its_package(folder: str) -> None:
    imported = imported_by(TREES[PACKAGE / folder / "__init__.py"])
    modules = [path for path, tree in TREES.items() if path.parent == PACKAGE / folder and registers(tree)]
    assert modules
    for path in modules:
        assert f"seqtk.{folder}.{path.stem}" in imported, f"seqtk/{folder}/__init__.py does not import {path.stem}"


def test_parts_of_attention_know_no_layer() -> None:
    """Beside them stand `base` and files that each register a layer, which no part imports."""
    folder = PACKAGE / "attention"
    layers = {path.stem for path, tree in TREES.items() if path.parent == folder and registers(tree)}
    assert {path.stem for path in folder.glob("*.py")} == layers | {"__init__", "base"}
    for path, tree in TREES.items():
        if path.parent == folder / "parts":
            found = {layer for layer in layers if f"seqtk.attention.{layer}" in imported_by(tree)}
            assert not found, f"{relative(path)} imports {', '.join(sorted(found))}"


def public_definitions(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """The classes and functions of a module that have no underscore."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_public_names_are_documented() -> None:
    bare = [
        f"{relative(path)}: {node.name}"
        for path, tree in TREES.items()
        for node in public_definitions(tree)
        if not ast.get_docstring(node)
    ]
    bare += [relative(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not bare, "without a docstring:\n" + "\n".join(bare)
