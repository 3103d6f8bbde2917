"""Tests have short names, and an assertion in the test function."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
MAX_NAME = 50
ASSERTION = re.compile(r"(.*\.)?(_?(assert|check)(_\w+)?|raises|warns|fail)")
"""Functions that a test may call instead of `assert`."""


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yields the location and the node of every test function."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(TESTS)}:{node.lineno} {node.name}", node


def asserts(test: ast.FunctionDef) -> bool:
    """Returns True if the test function has an assertion. (Assertions in its helpers do not count.)"""
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and ASSERTION.fullmatch(ast.unparse(node.func)))
        for node in ast.walk(test)
    )


def test_every_test_has_an_assertion() -> None:
    assert [place for place, test in functions() if not asserts(test)] == []


def test_test_names_have_at_most_50_characters() -> None:
    assert [place for place, test in functions() if len(test.name.removeprefix("test_")) > MAX_NAME] == []
