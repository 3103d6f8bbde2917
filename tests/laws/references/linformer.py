"""Reference implementation of Linformer."""

import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def linformer(problem: Problem) -> Array:
    """Computes softmax over K of q · (Σ_s E[k, s] key_s) / √e, times Σ_s F[k, s] value_s, over real positions s."""
    heads, rank = problem.config.heads, problem.config.rank
    y_BTD = np.zeros_like(problem.x_BTD)
    for row, tokens in enumerate(problem.attended_BSM):
        real = [token for token, pad in zip(tokens, problem.pad_BS[row], strict=True) if not pad]
        for query, x in enumerate(problem.x_BTD[row]):
            joined = []
            for head in range(heads):
                q = problem.head(problem.linear("query", x), head)
                keys = [_mixed(problem, "key", real, head, k, len(q)) for k in range(rank)]
                values = [_mixed(problem, "value", real, head, k, len(q)) for k in range(rank)]
                exponentials = [math.exp(q @ key / math.sqrt(len(q))) for key in keys]
                joined.append(sum(e * value for e, value in zip(exponentials, values, strict=True)) / sum(exponentials))
            y_BTD[row, query] = problem.linear("out", np.concatenate(joined))
    return y_BTD


def _mixed(problem: Problem, name: str, real: list[Array], head: int, k: int, width: int) -> Array:
    """Returns row k of the head's map times the keys or values of the real positions."""
    maps = problem.weights["key_map" if problem.config.sharing == "key_value" else f"{name}_map"]
    weights = maps[head if problem.config.sharing == "none" else 0, k]
    total = np.zeros(width)
    for position, token in enumerate(real):
        total += weights[position] * problem.head(problem.linear(name, token), head)
    return total


REFERENCES = {"linformer": linformer}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "linformer": {
        "": {"rank": 4},
        "own-maps": {"rank": 4, "sharing": "none"},
        "one-map": {"rank": 3, "sharing": "key_value", "bias": False},
    },
}
