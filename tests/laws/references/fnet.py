"""FNet."""

import cmath
import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def fnet(problem: Problem) -> Array:
    """Re Σ_s Σ_e x[s, e] exp(-2πi (t s / n + d e / D)), t and s the places among the n real positions."""
    y_BTD = np.zeros_like(problem.x_BTD)
    rows, _, dim = y_BTD.shape
    for row in range(rows):
        real = np.flatnonzero(~problem.pad_BS[row])
        size = math.sqrt(len(real) * dim) if problem.config.orthonormal else 1
        for t, query in enumerate(real):
            for d in range(dim):
                total = sum(
                    problem.x_BTD[row, key, e] * cmath.exp(-2j * math.pi * (t * s / len(real) + d * e / dim))
                    for s, key in enumerate(real)
                    for e in range(dim)
                )
                y_BTD[row, query, d] = complex(total).real / size
    return y_BTD


REFERENCES = {"fnet": fnet}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {"fnet": {"": {}, "as-published": {"orthonormal": False}}}
