"""Errors name only keys of the command that runs, and the spelling is American, as in torch."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqtk.training.config import TrainConfig
from tests.architecture.test_structure import PACKAGE, ROOT, SOURCES, TREES, relative

OF_TRAINING = (
    "attention",
    "checkpoint",
    "criterions",
    "data/sources",
    "models",
    "modules",
    "optim",
    "tasks",
    "training",
)
"""The packages whose errors can end seqtk-train."""
OF_COMMANDS = {PACKAGE / "tasks/other_data.py", PACKAGE / "checkpoint/edit.py"}
"""The modules in the packages OF_TRAINING that seqtk-train does not use."""
TOP_LEVEL = {field.name for field in dataclasses.fields(TrainConfig)} | set(TrainConfig.aliases)


def fixes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line number, text) for each line of a UserError after the first. Values are replaced by `{}`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
            for argument in node.args[1:]:
                if isinstance(argument, ast.Constant):
                    yield argument.lineno, str(argument.value)
                elif isinstance(argument, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in argument.values)
                    yield argument.lineno, "".join(map(str, parts))


@pytest.mark.parametrize(
    "path",
    [path for path in TREES if relative(path.parent).removeprefix("seqtk/").startswith(OF_TRAINING)],
    ids=relative,
)
def test_error_fixes_name_only_keys_of_seqtk_train(path: Path) -> None:
    for line, text in [] if path in OF_COMMANDS else fixes(TREES[path]):
        for key in re.findall(r"(?<![\w.}])([a-z_]+)=", text):
            is_of_other = re.search(rf"seqtk-[a-z]+ [^.]*\b{key}=", text) or "an entry" in text
            assert key in TOP_LEVEL or is_of_other, f"{relative(path)}:{line} names {key}="


BRITISH = re.compile(
    r"(?:token|normal|penal|initial|synchron|regular|minim|maxim|binar|organ|general|optim|summar|recogn|character|"
    r"parallel|serial|factor|random|vector|custom|util|categor)is(?:e[drs]?|ing|ations?)\b|"
    r"(?:col|fav|behavi|neighb|hon)our|\bgr[e]y|\bcent[r]e|\b(?:mis)?sp[e]lt\b|(?:odell|ignall|ravell|ancell)ing\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("folder", ["seqtk", "tests", "tools", "docs", "recipes", "."])
def test_spelling_is_american(folder: str) -> None:
    """As in torch's documentation: tokenize, color, centered."""
    texts = [path for path in SOURCES if path.is_relative_to(ROOT / folder)] if folder != "." else []
    texts += [*(ROOT / folder).glob("*.md"), *(ROOT / folder).glob("*.yaml")]
    for path in texts:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = BRITISH.search(line)
            assert found is None, f"{relative(path)}:{number}: {found}"
