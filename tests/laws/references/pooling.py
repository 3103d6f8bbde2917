"""Reference implementations of memory-compressed and pooled attention."""

import math
from typing import Any

import numpy as np

from seqtk.attention import Role
from seqtk.testing.reference import Array, Problem

Window = list[Array]
"""The keys or values of one head at the real positions of one window."""


def pooled(problem: Problem) -> Array:
    """Computes attention to windows. The key and value of a window are the mean or, per feature, the maximum."""

    def pool(name: str, head: int, window: Window) -> Array:
        return np.mean(window, axis=0) if problem.config.pool == "mean" else np.max(window, axis=0)

    return _attend(problem, pool, kernel=problem.config.kernel, stride=problem.config.stride)


def memory_compressed(problem: Problem) -> Array:
    """Computes attention to windows. The key and value of a window are Σ_k W_k x_k + b, with weights for each head."""

    def pool(name: str, head: int, window: Window) -> Array:
        weights = problem.weights[f"pool_{name}.weight"][head]
        total = sum(weights[k].T @ x for k, x in enumerate(window))
        bias = problem.weights.get(f"pool_{name}.bias")
        return total if bias is None else total + problem.head(bias, head)  # type: ignore[return-value]

    return _attend(problem, pool, kernel=problem.config.compression, stride=problem.config.compression)


def _attend(problem: Problem, pool: Any, *, kernel: int, stride: int) -> Array:
    y_BTD = np.zeros_like(problem.x_BTD)
    for row in range(len(y_BTD)):
        real = [place for place, pad in enumerate(problem.pad_BS[row]) if not pad]
        windows = [real[start : start + kernel] for start in range(0, len(real), stride)]
        for query in range(y_BTD.shape[1]):
            seen = [window for window in windows if _sees(problem, query, window, kernel)]
            heads = []
            for head in range(problem.config.heads):
                q = problem.head(problem.linear("query", problem.x_BTD[row, query]), head)
                keys, values = (
                    _pooled(problem, pool, name, row, head, seen, null=kernel > 1 and bool(real))
                    for name in ("key", "value")
                )
                exponentials = [math.exp(q @ key / math.sqrt(len(q))) for key in keys]
                total = np.zeros(len(q))
                for e, value in zip(exponentials, values, strict=True):
                    total += e / sum(exponentials) * value
                heads.append(total)
            y_BTD[row, query] = problem.linear("out", np.concatenate(heads))
    return y_BTD


def _sees(problem: Problem, query: int, window: list[int], kernel: int) -> bool:
    return problem.role is not Role.CAUSAL or (len(window) == kernel and window[-1] <= query)


def _pooled(
    problem: Problem, pool: Any, name: str, row: int, head: int, windows: list[list[int]], *, null: bool
) -> list[Array]:
    """Returns the keys or values that a query sees, starting with the null key or value if `null` is set."""
    nulls = [problem.head(problem.weights["null"][("key", "value").index(name)], head)] if null else []
    rows = problem.attended_BSM[row]
    return nulls + [
        pool(name, head, [problem.head(problem.linear(name, rows[place]), head) for place in window])
        for window in windows
    ]


REFERENCES = {"memory_compressed": memory_compressed, "pooled": pooled}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "memory_compressed": {"": {}, "by-2-no-bias": {"compression": 2, "bias": False}, "by-1": {"compression": 1}},
    "pooled": {
        "": {},
        "max": {"pool": "max", "kernel": 2, "stride": 2},
        "overlapping": {"kernel": 3, "stride": 2, "bias": False},
        "overlapping-max": {"pool": "max", "kernel": 4, "stride": 1},
    },
}
