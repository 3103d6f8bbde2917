"""Tables of a model's tensors by module, for the terminal."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

DEPTH = 4
"""The parts of a name that make a module: encoder.blocks.*.self_attention."""


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names of tensors by module; the modules of numbered blocks are one, with `*` for the number."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split(".")
        groups[pattern(".".join(parts[: min(DEPTH, max(len(parts) - 1, 1))]))].append(name)
    return groups


def pattern(module: str) -> str:
    """Returns the name of a module with `*` for numbers."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines of columns, indented; the first `left` columns are aligned on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
