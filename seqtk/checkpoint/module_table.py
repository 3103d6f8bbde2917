"""Formats tables of a model's tensors, grouped by module."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

DEPTH = 4
"""The number of parts of a name that identify a module, as in encoder.blocks.*.self_attention."""


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names of tensors by module. All numbered blocks are one group, with `*` as the number."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split(".")
        groups[pattern(".".join(parts[: min(DEPTH, max(len(parts) - 1, 1))]))].append(name)
    return groups


def pattern(module: str) -> str:
    """Returns the name of a module with its numbers replaced by `*`."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Returns the rows of a table as indented lines. Aligns the first `left` columns left, and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
