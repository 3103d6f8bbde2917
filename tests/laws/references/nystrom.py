"""Reference implementation of Nyström attention."""

import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def nystrom(problem: Problem) -> Array:
    """Computes S(Q, K̃) Z S(Q̃, K) V + conv(V), where S(Q, K) = softmax(Q Kᵀ / √e).

    Z is the pseudo-inverse of S(Q̃, K̃), from the paper's iteration.
    """
    y_BTD = np.zeros_like(problem.x_BTD)
    for row in range(len(y_BTD)):
        real = np.flatnonzero(~problem.pad_BS[row])
        if not len(real):
            y_BTD[row] = problem.linear("out", np.zeros(y_BTD.shape[2]))
            continue
        heads = [_head(problem, row, real, head) for head in range(problem.config.heads)]
        for t, place in enumerate(real):
            y_BTD[row, place] = problem.linear("out", np.concatenate([y_TE[t] for y_TE in heads]))
    return y_BTD


def _head(problem: Problem, row: int, real: Array, head: int) -> Array:
    """Returns the outputs of one head for one row."""
    q, k, v = (
        np.array([problem.head(problem.linear(name, problem.x_BTD[row, place]), head) for place in real])
        for name in ("query", "key", "value")
    )
    segments: dict[int, list[int]] = {}
    for t in range(len(real)):
        segments.setdefault(t * problem.config.landmarks // len(real), []).append(t)
    few_q, few_k = (np.array([x[members].mean(0) for _, members in sorted(segments.items())]) for x in (q, k))
    y: Array = _softmax(q, few_k) @ _inverse(_softmax(few_q, few_k), problem.config.iterations) @ _softmax(few_q, k) @ v
    half = problem.config.kernel // 2
    for t in range(len(real)):
        for s in range(max(0, t - half), min(len(real), t + half + 1) if problem.config.kernel else 0):
            y[t] += problem.weights["conv.weight"][head, 0, s - t + half, 0] * v[s]
    return y


def _softmax(q: Array, k: Array) -> Array:
    exponentials = np.array([[math.exp(a @ b / math.sqrt(len(a))) for b in k] for a in q])
    return exponentials / exponentials.sum(1, keepdims=True)  # type: ignore[no-any-return]


def _inverse(a: Array, iterations: int) -> Array:
    one = np.eye(len(a))
    z: Array = a.T / (max(sum(abs(a))) * max(sum(abs(a.T))))
    for _ in range(iterations):
        z = 0.25 * z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
    return z


REFERENCES = {"nystrom": nystrom}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "nystrom": {
        "": {"landmarks": 3, "kernel": 3},
        "more-landmarks-than-tokens": {"landmarks": 8, "kernel": 35},
        "no-convolution": {"landmarks": 4, "kernel": 0, "iterations": 3, "bias": False},
    },
}
