"""Reference implementations of Attention Free Transformers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem

Bias = Callable[[int, int], float]


def gated_means(problem: Problem, bias: Bias) -> Array:
    """Computes out(sigmoid(q_t) Σ_s exp(k_s + w_ts) v_s / Σ_s exp(k_s + w_ts)) per channel. `bias` returns w_ts."""
    rows, queries, dim = problem.x_BTD.shape
    y_BTD = np.zeros((rows, queries, dim))
    for row in range(rows):
        keys = [problem.linear("key", token) for token in problem.x_BTD[row]]
        values = [problem.linear("value", token) for token in problem.x_BTD[row]]
        for query in range(queries):
            seen = [s for s in range(queries) if problem.sees(row, query, s)]
            y = np.zeros(dim)
            if seen:
                weights = {s: np.exp(keys[s] + bias(query, s)) for s in seen}
                means = sum(weights[s] * values[s] for s in seen) / sum(weights.values())
                y = means / (1 + np.exp(-problem.linear("query", problem.x_BTD[row, query])))
            y_BTD[row, query] = problem.linear("out", y)
    return y_BTD


def full(problem: Problem) -> Array:
    """Computes AFT-full, whose position bias is w_ts = u_t · v_s."""
    return gated_means(problem, lambda t, s: _product(problem, t, s))


def local(problem: Problem) -> Array:
    """Computes AFT-local, whose position bias is w_ts = u_t · v_s within the window, else 0."""
    return gated_means(problem, lambda t, s: _product(problem, t, s) if abs(t - s) < problem.config.window else 0.0)


def _product(problem: Problem, t: int, s: int) -> float:
    return float(problem.weights["position_query"][t] @ problem.weights["position_key"][s])


REFERENCES = {
    "aft_simple": lambda problem: gated_means(problem, lambda t, s: 0.0),
    "aft_full": full,
    "aft_local": local,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "aft_simple": {"": {}, "no-bias": {"bias": False}},
    "aft_full": {"": {"rank": 3}},
    "aft_local": {
        "": {"rank": 3, "window": 2},
        "own-place": {"rank": 3, "window": 1},
        "wide": {"rank": 3, "window": 4},
        "all": {"rank": 3, "window": 12},
    },
}
