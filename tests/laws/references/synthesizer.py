"""Reference implementations of the Synthesizers and their mixtures."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Logit, Problem, softmax_average
from tests.laws.references.dot_product import dot


def dense(problem: Problem, name: str) -> Logit:
    """Returns a function that computes the logit: element j of W2 relu(W1 x + b1) + b2, for a key at position j."""

    perceptron = _perceptron(problem, name)

    def logit(row: int, head: int, query: int, key: int) -> float:
        return float(perceptron("logits", row, head, query)[key])

    return logit


def factorized_dense(problem: Problem, name: str) -> Logit:
    """Returns a function that computes the logit A_p B_q of the key at position p b + q."""

    perceptron = _perceptron(problem, name)

    def logit(row: int, head: int, query: int, key: int) -> float:
        coarse, fine = (perceptron(last, row, head, query) for last in ("coarse", "fine"))
        p, q = divmod(key, len(fine))
        return float(coarse[p] * fine[q])

    return logit


def _perceptron(problem: Problem, name: str) -> Callable[[str, int, int, int], Array]:
    """Returns a function that computes the output of a perceptron from (last linear layer, row, head, query)."""

    @functools.cache
    def perceptron(last: str, row: int, head: int, query: int) -> Array:
        hidden = np.maximum(problem.linear(f"{name}.hidden", problem.x_BTD[row, query]), 0)
        y: Array = problem.weights[f"{name}.{last}.weight"][head].T @ problem.head(hidden, head)
        bias = problem.weights.get(f"{name}.{last}.bias")
        return y if bias is None else y + bias[head, 0]

    return perceptron


def random(problem: Problem, name: str) -> Logit:
    """Returns a function that computes the logit R[t, s] of the head's matrix, for positions t and s."""
    matrix = problem.weights[f"{name}.matrix"]

    def logit(row: int, head: int, query: int, key: int) -> float:
        return float(matrix[head, query, key])

    return logit


def factorized_random(problem: Problem, name: str) -> Logit:
    """Returns a function that computes the logit Σ_k R1[t, k] R2[s, k], for positions t and s."""
    first, second = problem.weights[f"{name}.query"], problem.weights[f"{name}.key"]

    def logit(row: int, head: int, query: int, key: int) -> float:
        return float(first[head, query] @ second[head, key])

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
    """Computes attention with the logits Σ w_i S_i.

    The weights w_i depend on `mix`. They are 1; sigmoid(a) and 1 - sigmoid(a); or exp(a_i) / Σ exp(a_j).
    """
    parts = problem.config.parts
    logits = [LOGITS[part](problem, f"sources.{part}") for part in parts]
    scalars = problem.weights.get("mixing")

    @functools.cache
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

    return softmax_average(problem, logit)


def _pure(part: str) -> Callable[[Problem], Array]:
    return lambda problem: softmax_average(problem, LOGITS[part](problem, "logits"))


REFERENCES = {
    "synthesizer_dense": _pure("dense"),
    "synthesizer_random": _pure("random"),
    "synthesizer_fixed_random": _pure("fixed_random"),
    "synthesizer_factorized_dense": _pure("factorized_dense"),
    "synthesizer_factorized_random": _pure("factorized_random"),
    "synthesizer_mixture": mixture,
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "synthesizer_dense": {"": {}, "no-bias": {"bias": False}},
    "synthesizer_factorized_dense": {"": {}, "padded-factors": {"max_length": 11}, "fine": {"fine": 5}},
    "synthesizer_mixture": {
        "": {},
        "random+dot-sigmoid": {"parts": ["random", "dot"], "mix": "sigmoid"},
        "dot+dense-sum": {"parts": ["dot", "dense"], "mix": "sum"},
        "no-dot": {"parts": ["factorized_random", "factorized_dense"], "mix": "sigmoid", "per_head": True},
        "all": {
            "parts": ["dot", "dense", "random", "fixed_random", "factorized_dense", "factorized_random"],
            "mix": "softmax",
            "per_head": True,
        },
    },
}
