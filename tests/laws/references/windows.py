"""Reference implementations of local blocks, sliding windows and Longformer, and `patterned`, on which they build."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem

Pattern = Callable[[int, int, int, int], bool]
"""(row, head, query position, key position) → whether the query sees the key."""


def patterned(problem: Problem, pattern: Pattern, *, prefix: Callable[[int], str] = lambda t: "") -> Array:
    """Computes dot-product attention to the keys of a pattern.

    `prefix` returns the prefix of the names of the projections for a query position.
    """
    y_BTD = np.zeros_like(problem.x_BTD)
    for row in range(len(y_BTD)):
        for query in range(y_BTD.shape[1]):
            t = query
            heads = []
            for head in range(problem.config.heads):
                seen = [
                    key for key in range(y_BTD.shape[1]) if problem.sees(row, query, key) and pattern(row, head, t, key)
                ]
                heads.append(_weigh(problem, prefix(t), row, head, query, seen))
            y_BTD[row, query] = problem.linear("out", np.concatenate(heads))
    return y_BTD


def _weigh(problem: Problem, prefix: str, row: int, head: int, query: int, seen: list[int]) -> Array:
    """Computes softmax(q · k / √e) over the keys `seen`, times their values, or 0 if there are none."""
    q = problem.head(problem.linear(f"{prefix}query", problem.x_BTD[row, query]), head)
    total, weight = np.zeros(len(q)), 0.0
    for key in seen:
        k = problem.head(problem.linear(f"{prefix}key", problem.x_BTD[row, key]), head)
        e = math.exp(q @ k / math.sqrt(len(k)))
        total += e * problem.head(problem.linear(f"{prefix}value", problem.x_BTD[row, key]), head)
        weight += e
    return total / weight if seen else total


def near(problem: Problem, t: int, s: int) -> bool:
    """Returns True if s is in the window of t."""
    distance = abs(t - s) * (2 if problem.role.name == "ENCODER" else 1)
    return bool(distance <= problem.config.window - (problem.role.name == "CAUSAL"))


def local_block(problem: Problem) -> Array:
    block, back = problem.config.block, problem.config.back
    return patterned(problem, lambda row, head, t, s: t // block - s // block in ((0, 1) if back else (0,)))


def longformer(problem: Problem) -> Array:
    """Computes attention to windows and global positions. Global positions attend to all, by separate projections."""
    count = problem.config.global_tokens
    return patterned(
        problem,
        lambda row, head, t, s: t < count or s < count or near(problem, t, s),
        prefix=lambda t: "global_" if t < count else "",
    )


REFERENCES = {
    "local_block": local_block,
    "sliding_window": lambda problem: patterned(problem, lambda row, head, t, s: near(problem, t, s)),
    "longformer": longformer,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "local_block": {"": {"block": 2}, "back": {"block": 3, "back": True, "bias": False}},
    "sliding_window": {"": {"window": 2}, "odd": {"window": 5, "bias": False}},
    "longformer": {"": {"window": 2, "global_tokens": 2}, "odd": {"window": 3, "global_tokens": 3, "bias": False}},
}
