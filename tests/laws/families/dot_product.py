"""Scaled dot-product attention."""

import math
from typing import Any

import numpy as np

from tests.laws.naive import Array, Logit, Problem, weighted_values


def turned(vector: Array, position: int) -> Array:
    """Pairs (e, e + E/2) as complex numbers, times exp(i position 10000^(-2e/E))."""
    half = len(vector) // 2
    pairs = vector[:half] + 1j * vector[half:]
    pairs *= np.exp(1j * position * np.array([10000 ** (-2 * e / len(vector)) for e in range(half)]))
    return np.concatenate([pairs.real, pairs.imag])


def dot(problem: Problem, _: str) -> Logit:
    """q · k / √e."""

    def logit(row: int, head: int, query: int, key: int) -> float:
        q = problem.head(problem.linear("query", problem.x_BTD[row, query]), head)
        k = problem.head(problem.linear("key", problem.keys_from_BSM[row, key]), head)
        if getattr(problem.config, "rotary", False):
            q = turned(q, int(problem.position_BT[row, query]))
            k = turned(k, int(problem.position_BT[row, key]))
        return float(q @ k) / math.sqrt(len(q))

    return logit


ORACLES = {"softmax": lambda problem: weighted_values(problem, dot(problem, ""))}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "softmax": {"": {}, "no-bias": {"bias": False}, "rotary": {"rotary": True}},
}
