"""Reference implementations of kernel attention, from the weight φ(q) · φ(k) of every pair of a query and a key."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from seqtk.attention import Role
from seqtk.testing.reference import Array, Problem

Weight = Callable[[Problem, int, int, Array, int, Array, int], float]
"""(problem, row, head, query vector, query, key vector, key) → the weight of the pair before normalization."""


def quotient(problem: Problem, weight: Weight, *, added: float = 0.0, at_least: float = 0.0) -> Array:
    """Computes out(Σ weight v / Σ weight) over the keys that a query sees, or out(0) if it sees none.

    `added` is added to the denominator, and a denominator below `at_least` is replaced by `at_least`.
    """
    rows, queries, _ = problem.x_BTD.shape
    outputs = []
    for row in range(rows):
        tokens = problem.attended_BSM[row]
        keys, values = (
            [
                [problem.head(problem.linear(name, token), head) for token in tokens]
                for head in range(problem.config.heads)
            ]
            for name in ("key", "value")
        )
        for query in range(queries):
            seen = [key for key in range(len(tokens)) if problem.sees(row, query, key)]
            heads = []
            for head in range(problem.config.heads):
                q = problem.head(problem.linear("query", problem.x_BTD[row, query]), head)
                above, below = 0 * q, 0.0
                for key in seen:
                    pair = weight(problem, row, head, q, query, keys[head][key], key)
                    above = above + pair * values[head][key]
                    below += pair
                below = max(below + added, at_least)
                heads.append(above / below if below else above)
            outputs.append(problem.linear("out", np.concatenate(heads)))
    return np.stack(outputs).reshape(rows, queries, -1)


def elu_plus_one(_p: Problem, _row: int, _head: int, q: Array, _query: int, k: Array, _key: int) -> float:
    """Returns Σ_e φ(q_e) φ(k_e), where φ(x) = x + 1 above 0 and exp(x) below."""

    def phi(x: float) -> float:
        return x + 1 if x > 0 else math.exp(x)

    return sum(phi(a) * phi(b) for a, b in zip(q, k, strict=True))


def near(problem: Problem, row: int, _head: int, q: Array, query: int, k: Array, key: int) -> float:
    """Returns relu(q) · relu(k) cos(π/2 (t - s) / max_length). In cross-attention, s counts real positions only."""
    t = query
    s = int(np.sum(~problem.pad_BS[row, :key])) if problem.role is Role.CROSS else key
    return float(np.maximum(q, 0) @ np.maximum(k, 0)) * math.cos(math.pi / 2 * (t - s) / problem.config.max_length)


def random_features(problem: Problem, _row: int, _head: int, q: Array, _query: int, k: Array, _key: int) -> float:
    """Returns 1/R Σ_r φ_r(q) φ_r(k), where φ_r(x) = exp(w_r · x' - |x'|²/2) or relu(w_r · x') + 0.001, x' = x / e^¼."""
    rows = problem.weights["projection_RE"]

    def phi(row: Array, x: Array) -> float:
        x = x / len(x) ** 0.25
        if problem.config.kernel == "relu":
            return float(max(row @ x, 0) + 0.001)
        return math.exp(row @ x - x @ x / 2)

    def features(x: Array) -> Array:
        return np.array([phi(row, x) for row in rows])

    return float(problem.once("features", features, q) @ problem.once("features", features, k)) / len(rows)


def trained(problem: Problem, _row: int, head: int, q: Array, _query: int, k: Array, _key: int) -> float:
    """Returns φ(q) · φ(k), where φ is a network whose result is divided by √e.

    A stage is x W, or softplus(x W) in the last stage, times sigmoid(x U) or sigmoid(x A B) if it has a gate.
    """
    depth = problem.config.depth

    def phi(x: Array) -> Array:
        for stage in range(depth):
            name = f"stages.{stage}"
            y = x @ problem.weights[f"{name}.matrix_HEE"][head]
            if stage == depth - 1:
                y = np.log(1 + np.exp(y))
            if f"{name}.gate.0" in problem.weights:
                gate = x @ problem.weights[f"{name}.gate.0"][head]
                if f"{name}.gate.1" in problem.weights:
                    gate = gate @ problem.weights[f"{name}.gate.1"][head]
                y = y / (1 + np.exp(-gate))
            x = y
        return x / math.sqrt(len(x))

    return float(problem.once(f"features.{head}", phi, q) @ problem.once(f"features.{head}", phi, k))


REFERENCES = {
    "linear": lambda problem: quotient(problem, elu_plus_one, added=1e-6),
    "cosformer": lambda problem: quotient(problem, near, at_least=1e-6),
    "performer": lambda problem: quotient(problem, random_features),
    "feedforward_kernel": lambda problem: quotient(problem, trained),
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "linear": {"": {}, "no-bias": {"bias": False}},
    "performer": {"": {}, "many": {"features": 11}, "relu": {"kernel": "relu", "features": 9}},
    "feedforward_kernel": {
        "": {},
        "ffn-2": {"kernel": "ffn", "depth": 2},
        "linear": {"kernel": "linear"},
        "glu-3": {"kernel": "glu", "depth": 3, "bias": False},
        "aoglu-2": {"kernel": "aoglu", "depth": 2},
    },
}
