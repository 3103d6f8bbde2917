"""Reference implementation of dot-product attention: grouped queries, normalized heads, position encodings."""

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from seqtk.attention import Role
from seqtk.testing.reference import Array, Logit, Problem, softmax_average


def rotated(vector: Array, position: int) -> Array:
    """Rotates the pairs (e, e + E/2) of a vector, as complex numbers, by exp(i position 10000^(-2e/E))."""
    half = len(vector) // 2
    pairs = vector[:half] + 1j * vector[half:]
    pairs *= np.exp(1j * position * np.array([10000 ** (-2 * e / len(vector)) for e in range(half)]))
    return np.concatenate([pairs.real, pairs.imag])


def slopes(heads: int) -> list[float]:
    """Returns ALiBi's slopes: 2^(-8 i / n) if n is a power of two.

    Otherwise, the slopes for the next smaller power of two, then every second slope for the next larger one.
    """
    power = 2 ** math.floor(math.log2(heads))
    if power == heads:
        return [2 ** (-8 / heads * (i + 1)) for i in range(heads)]
    return slopes(power) + slopes(2 * power)[::2][: heads - power]


def t5_bucket(distance: int, *, causal: bool, buckets: int = 32, max_distance: int = 128) -> int:
    """Returns T5's bucket of a distance. Large distances share buckets of growing width.

    If the attention is not causal, positive and negative distances have half of the buckets each.
    """
    if not causal:
        buckets //= 2
    offset = buckets if distance > 0 and not causal else 0
    far = max(-distance, 0) if causal else abs(distance)
    exact = buckets // 2
    if far < exact:
        return offset + far
    share = math.log(far / exact) / math.log(max_distance / exact)
    return offset + min(buckets - 1, exact + math.floor(share * (buckets - exact) + 1e-9))


def bias(problem: Problem, head: int, distance: int) -> float:
    """Returns the bias of the logit of a key `distance` positions after its query."""
    positions = getattr(problem.config, "positions", "none")
    if positions == "alibi":
        return -slopes(problem.config.heads)[head] * abs(distance)
    if positions == "t5":
        bucket = t5_bucket(distance, causal=problem.role is Role.CAUSAL)
        return float(problem.weights["distance_bias.table"][bucket, head])
    return 0.0


def dot(problem: Problem, _: str) -> Logit:
    """Returns a function that computes the logit q · k / √e plus the bias.

    Depending on the settings, q and k are normalized and rotated.
    """

    @functools.cache
    def project(name: str, head: int, row: int, index: int) -> Array:
        tokens_BTD = problem.x_BTD if name == "query" else problem.attended_BSM
        x = problem.head(problem.linear(name, tokens_BTD[row, index]), head)
        if getattr(problem.config, "qk_norm", False):
            x = problem.weights[f"{name}_norm.scale"] * x / math.sqrt(float(np.mean(x**2)) + 1e-6)
        position = 0 if problem.role is Role.CROSS else index
        return rotated(x, position) if getattr(problem.config, "positions", "none") == "rotary" else x

    def logit(row: int, head: int, query: int, key: int) -> float:
        q, k = project("query", head, row, query), project("key", head, row, key)
        distance = 0 if problem.role is Role.CROSS else key - query
        return float(q @ k) / math.sqrt(len(q)) + bias(problem, head, distance)

    return logit


def repeated(problem: Problem) -> Problem:
    """Returns a problem with equal numbers of heads: each head of keys and values is repeated for its query heads."""
    if problem.config.kv_heads is None:
        return problem
    times, size = problem.config.heads // problem.config.kv_heads, problem.x_BTD.shape[2] // problem.config.heads

    def repeat(name: str, weight: Array) -> Array:
        if not name.startswith(("key.", "value.")):
            return weight
        return np.concatenate([weight[at : at + size] for at in range(0, len(weight), size) for _ in range(times)])

    return replace(problem, weights={name: repeat(name, weight) for name, weight in problem.weights.items()})


def softmax(problem: Problem) -> Array:
    problem = repeated(problem)
    return softmax_average(problem, dot(problem, ""))


REFERENCES = {"softmax": softmax}
SELF = Role.ENCODER | Role.CAUSAL
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "softmax": {
        "": {},
        "no-bias": {"bias": False},
        "grouped": {"kv_heads": 2, "heads": 4},
        "normed": {"qk_norm": True},
        "rotary": {"positions": "rotary", "roles": SELF},
        "alibi": {"positions": "alibi", "roles": SELF},
        "t5": {"positions": "t5", "roles": SELF},
        "grouped-normed-alibi": {"kv_heads": 1, "qk_norm": True, "positions": "alibi", "heads": 4, "roles": SELF},
        "grouped-normed-rotary": {"kv_heads": 1, "qk_norm": True, "positions": "rotary", "roles": SELF},
    },
}
