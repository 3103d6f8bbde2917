"""Every attention layer once more: loops over rows, heads, queries and keys in float64, written from the equations.

Apart from the implementation on purpose: only its weights, read by name, are used here. `ORACLES` must have every
registered kind. Where the equations come from is said in the implementation's docstrings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqtk.attention import Attention, Role, attentions

Array = np.ndarray[Any, np.dtype[np.float64]]
Logit = Callable[[int, int, int, int], float]
"""(row, head, query, key) → the logit."""


@dataclass(frozen=True)
class Problem:
    """A layer's config and weights, and its input as arrays; `position[b][t]` is where in its row a token stands."""

    config: Any
    role: Role
    weights: dict[str, Array]
    x_BTD: Array
    keys_from_BSM: Array
    pad_BS: Array
    position_BT: Array

    def sees(self, row: int, query: int, key: int) -> bool:
        return not self.pad_BS[row, key] and not (self.role is Role.CAUSAL and key > query)

    def head(self, vector: Array, head: int) -> Array:
        size = len(vector) // self.config.heads
        return vector[head * size : (head + 1) * size]

    def linear(self, name: str, vector: Array) -> Array:
        y: Array = self.weights[f"{name}.weight"] @ vector
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y


def naive(
    layer: Attention,
    x_BTD: torch.Tensor,
    memory_BSM: torch.Tensor | None,
    *,
    pad_BS: torch.Tensor,
    positions_BT: torch.Tensor | None,
) -> Array:
    """What `layer` must give."""
    if positions_BT is None:
        positions_BT = torch.arange(x_BTD.shape[1]).expand(x_BTD.shape[:2])
    problem = Problem(
        config=layer.config,
        role=layer.role,
        weights={name: value.double().cpu().numpy() for name, value in layer.state_dict().items()},
        x_BTD=x_BTD.double().cpu().numpy(),
        keys_from_BSM=(x_BTD if memory_BSM is None else memory_BSM).double().cpu().numpy(),
        pad_BS=pad_BS.cpu().numpy(),
        position_BT=positions_BT.cpu().numpy(),
    )
    return ORACLES[attentions.name_of(type(layer.config))](problem)


def weighted_values(problem: Problem, logit: Logit) -> Array:
    """softmax over the keys seen, times their values, per head; then the output projection."""
    rows, queries, _ = problem.x_BTD.shape
    outputs = []
    for row in range(rows):
        values = [problem.linear("value", token) for token in problem.keys_from_BSM[row]]
        for query in range(queries):
            keys = [key for key in range(len(values)) if problem.sees(row, query, key)]
            heads = []
            for head in range(problem.config.heads):
                exponentials = [math.exp(logit(row, head, query, key)) for key in keys]
                heads.append(
                    sum(
                        (e / sum(exponentials) * problem.head(values[key], head) for e, key in zip(exponentials, keys)),  # noqa: B905
                        start=0 * problem.head(values[0], head),
                    )
                )
            outputs.append(problem.linear("out", np.concatenate(heads)))
    return np.stack(outputs).reshape(rows, queries, -1)


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


def dense(problem: Problem, name: str) -> Logit:
    """Element j of W2 relu(W1 x + b1) + b2, j the key's position."""

    def logit(row: int, head: int, query: int, key: int) -> float:
        return float(_perceptron(problem, name, "logits", row, head, query)[problem.position_BT[row, key]])

    return logit


def factorized_dense(problem: Problem, name: str) -> Logit:
    """A_p B_q with p b + q the key's position."""

    def logit(row: int, head: int, query: int, key: int) -> float:
        coarse = _perceptron(problem, name, "coarse", row, head, query)
        fine = _perceptron(problem, name, "fine", row, head, query)
        p, q = divmod(int(problem.position_BT[row, key]), len(fine))
        return float(coarse[p] * fine[q])

    return logit


def _perceptron(problem: Problem, name: str, last: str, row: int, head: int, query: int) -> Array:
    hidden = np.maximum(problem.linear(f"{name}.hidden", problem.x_BTD[row, query]), 0)
    y: Array = problem.weights[f"{name}.{last}.weight"][head].T @ problem.head(hidden, head)
    bias = problem.weights.get(f"{name}.{last}.bias")
    return y if bias is None else y + bias[head, 0]


def random(problem: Problem, name: str) -> Logit:
    """R[t, s] of the head's matrix, t and s positions."""
    matrix = problem.weights[f"{name}.matrix"]

    def logit(row: int, head: int, query: int, key: int) -> float:
        return float(matrix[head, problem.position_BT[row, query], problem.position_BT[row, key]])

    return logit


def factorized_random(problem: Problem, name: str) -> Logit:
    """Σ_k R1[t, k] R2[s, k]."""
    first, second = problem.weights[f"{name}.query"], problem.weights[f"{name}.key"]

    def logit(row: int, head: int, query: int, key: int) -> float:
        t, s = problem.position_BT[row, query], problem.position_BT[row, key]
        return float(sum(first[head, t, k] * second[head, s, k] for k in range(first.shape[2])))

    return logit


LOGITS: dict[str, Callable[[Problem, str], Logit]] = {
    "dot": dot,
    "dense": dense,
    "random": random,
    "fixed_random": random,
    "factorized_dense": factorized_dense,
    "factorized_random": factorized_random,
}


def mixture(problem: Problem) -> Array:
    """Σ w_i S_i, w by `mix`: 1; sigmoid(a) and 1 - sigmoid(a); exp(a_i) / Σ exp(a_j)."""
    parts = problem.config.parts
    logits = [LOGITS[part](problem, f"sources.{part}") for part in parts]
    scalars = problem.weights.get("mixing")

    def weight(index: int, head: int) -> float:
        if scalars is None:
            return 1.0
        column = scalars[:, head if problem.config.per_head else 0]
        if problem.config.mix == "sigmoid":
            first = 1 / (1 + math.exp(-column[0]))
            return first if index == 0 else 1 - first
        return math.exp(column[index]) / sum(math.exp(scalar) for scalar in column)

    def logit(row: int, head: int, query: int, key: int) -> float:
        return sum(weight(i, head) * logits[i](row, head, query, key) for i in range(len(parts)))

    return weighted_values(problem, logit)


def _pure(part: str) -> Callable[[Problem], Array]:
    return lambda problem: weighted_values(problem, LOGITS[part](problem, "logits"))


ORACLES: dict[str, Callable[[Problem], Array]] = {
    "softmax": _pure("dot"),
    "synthesizer_dense": _pure("dense"),
    "synthesizer_random": _pure("random"),
    "synthesizer_fixed_random": _pure("fixed_random"),
    "synthesizer_factorized_dense": _pure("factorized_dense"),
    "synthesizer_factorized_random": _pure("factorized_random"),
    "synthesizer_mixture": mixture,
}
"""Kind → what it must compute."""
