"""Reference implementations of lightweight and dynamic convolution."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from seqtk.attention import Role
from seqtk.testing.reference import Array, Problem

Kernel = Callable[[Problem, int, Array], Array]
"""(problem, head, v at the position) → the taps before their softmax."""


def convolution(problem: Problem, kernel: Kernel) -> Array:
    """Computes out(Σ_k w_k v_{t + k - before}) over the taps inside the row, where w is a softmax over all taps."""
    config = problem.config
    before = config.kernel_size - 1 if problem.role is Role.CAUSAL else (config.kernel_size - 1) // 2
    rows, length, _ = problem.x_BTD.shape
    y_BTD = np.zeros_like(problem.x_BTD)
    for row in range(rows):
        values = [_value(problem, token) for token in problem.x_BTD[row]]
        for t in range(length):
            heads = []
            for head in range(config.heads):
                taps = [float(tap) for tap in kernel(problem, head, values[t])]
                if config.weight_softmax:
                    taps = [math.exp(tap) / sum(math.exp(other) for other in taps) for tap in taps]
                y = 0 * problem.head(values[0], head)
                for k in range(config.kernel_size):
                    s = t + k - before
                    if 0 <= s < length and not problem.pad_BS[row, s]:
                        y = y + taps[k] * problem.head(values[s], head)
                heads.append(y)
            y_BTD[row, t] = problem.linear("out", np.concatenate(heads))
    return y_BTD


def _value(problem: Problem, token: Array) -> Array:
    """Returns value(x), or a · σ(b) with `glu`, where a and b are the halves of value(x)."""
    projected = problem.linear("value", token)
    if not problem.config.glu:
        return projected
    a, b = np.split(projected, 2)
    return a / (1 + np.exp(-b))


def trained(problem: Problem, head: int, _: Array) -> Array:
    return problem.weights["kernel"][head]


def predicted(problem: Problem, head: int, value: Array) -> Array:
    taps = problem.config.kernel_size
    return problem.weights["kernel.weight"][head * taps : (head + 1) * taps] @ value


_SIZES: dict[str, dict[str, Any]] = {
    "": {"kernel_size": 3},
    "even": {"kernel_size": 4, "bias": False},
    "plain": {"kernel_size": 5, "glu": False, "weight_softmax": False},
    "longer-than-rows": {"kernel_size": 31},
}
REFERENCES = {
    "lightweight_conv": lambda problem: convolution(problem, trained),
    "dynamic_conv": lambda problem: convolution(problem, predicted),
}
VARIANTS = dict.fromkeys(REFERENCES, _SIZES)
