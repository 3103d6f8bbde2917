"""Reference implementation of gMLP's spatial gating unit."""

import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def gmlp(problem: Problem) -> Array:
    """Computes out(u_t ⊙ (Σ_s W[t, s] norm(v_s) + b[t])), where u and v are the halves of gelu(expand(x))."""
    y_BTD = np.zeros_like(problem.x_BTD)
    rows, queries, _ = y_BTD.shape
    for row in range(rows):
        halves = [np.split(_gelu(problem.linear("expand", token)), 2) for token in problem.x_BTD[row]]
        for t in range(queries):
            gate = np.full(len(halves[t][0]), problem.weights["spatial_bias"][t])
            for s in range(queries):
                if problem.sees(row, t, s):
                    gate = gate + problem.weights["spatial"][t, s] * _norm(problem, halves[s][1])
            y_BTD[row, t] = problem.linear("out", halves[t][0] * gate)
    return y_BTD


def _gelu(vector: Array) -> Array:
    return np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in vector])


def _norm(problem: Problem, vector: Array) -> Array:
    centered = vector - vector.mean()
    scaled: Array = centered / math.sqrt((centered**2).mean() + 1e-5)
    return scaled * problem.weights["norm.weight"] + problem.weights["norm.bias"]


REFERENCES = {"gmlp": gmlp}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {"gmlp": {"": {}, "inner-no-bias": {"inner": 5, "bias": False}}}
