"""Reference implementation of FNet."""

import cmath
import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def fnet(problem: Problem) -> Array:
    """Computes Re Σ_s Σ_e x[s, e] exp(-2πi (t s / n + d e / D)), where t and s count the n real positions."""
    y_BTD = np.zeros_like(problem.x_BTD)
    rows, _, dim = y_BTD.shape
    for row in range(rows):
        real = np.flatnonzero(~problem.pad_BS[row])
        size = math.sqrt(len(real) * dim) if problem.config.orthonormal else 1
        n = len(real)
        by_position = np.array([[cmath.exp(-2j * math.pi * t * s / n) for s in range(n)] for t in range(n)])
        by_feature = np.array([[cmath.exp(-2j * math.pi * d * e / dim) for e in range(dim)] for d in range(dim)])
        for t, query in enumerate(real):
            for d in range(dim):
                total = (problem.x_BTD[row, real] * by_position[t][:, None] * by_feature[d]).sum()
                y_BTD[row, query, d] = total.real / size
    return y_BTD


REFERENCES = {"fnet": fnet}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {"fnet": {"": {}, "as-published": {"orthonormal": False}}}
