"""Reference implementation of Mega."""

import math
from typing import Any

import numpy as np

from seqtk.attention import Role
from seqtk.testing.reference import Array, Problem
from tests.laws.references.dot_product import rotated


def _sigmoid(vector: Array) -> Array:
    return 1 / (1 + np.exp(-vector))


def _silu(vector: Array) -> Array:
    return vector * _sigmoid(vector)


def _averages(problem: Problem, tokens: list[Array]) -> list[Array]:
    """Returns Σ η · h / √N of each channel, where h = α β x + (1 - α δ) h is computed position by position."""
    names = ("share", "damping", "expand", "collapse")
    share, damping, expand, collapse = (problem.weights[f"average.{name}"] for name in names)
    alpha, delta = _sigmoid(share), _sigmoid(damping)
    dim, count = share.shape
    results = [np.zeros(dim) for _ in tokens]
    for channel in range(dim):
        for n in range(count):
            backwards = problem.role is Role.ENCODER and n >= count // 2
            h = 0.0
            for t in reversed(range(len(tokens))) if backwards else range(len(tokens)):
                keep = 1 - alpha[channel, n] * delta[channel, n]
                h = alpha[channel, n] * expand[channel, n] * tokens[t][channel] + keep * h
                results[t][channel] += collapse[channel, n] * h / math.sqrt(count)
    return results


def _row(problem: Problem, tokens: list[Array]) -> list[Array]:
    """Returns the outputs of the layer for one row without padding."""
    config, weights = problem.config, problem.weights
    dim = len(tokens[0])
    shared = config.shared or dim // 4
    outputs = []
    moved = [_silu(a + weights["skip"] * x) for a, x in zip(_averages(problem, tokens), tokens, strict=True)]
    bases = [problem.linear("base", m) for m in moved]
    zs = [_silu(base[2 * dim : 2 * dim + shared]) for base in bases]
    queries = [z * weights["scales"][0] + weights["shifts"][0] for z in zs]
    keys = [z * weights["scales"][1] + weights["shifts"][1] for z in zs]
    if config.rotary:
        queries = [rotated(q, t) for t, q in enumerate(queries)]
        keys = [rotated(k, t) for t, k in enumerate(keys)]
    for t, token in enumerate(tokens):
        seen = [s for s in range(len(tokens)) if problem.role is not Role.CAUSAL or s <= t]
        if config.chunk:
            seen = [s for s in seen if s // config.chunk == t // config.chunk]
        logits = {s: math.exp(queries[t] @ keys[s] / math.sqrt(shared)) for s in seen}
        attended = sum(logits[s] * _silu(problem.linear("value", tokens[s])) for s in seen) / sum(logits.values())
        update, hidden, reset = bases[t][:dim], bases[t][dim : 2 * dim], bases[t][2 * dim + shared :]
        candidate = _silu(hidden + problem.linear("attended", _silu(reset) * attended))
        outputs.append(_sigmoid(update) * (candidate - token))
    return outputs


def mega(problem: Problem) -> Array:
    """Computes the outputs row by row, each without padding."""
    y_BTD = np.zeros_like(problem.x_BTD)
    for row, pad_T in enumerate(problem.pad_BS):
        real = np.flatnonzero(~pad_T)
        outputs = _row(problem, [problem.x_BTD[row, t] for t in real])
        for t, output in zip(real, outputs, strict=True):
            y_BTD[row, t] = output
    return y_BTD


REFERENCES = {"mega": mega}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "mega": {
        "": {"averages": 4},
        "chunks": {"averages": 2, "chunk": 2, "rotary": False, "shared": 3},
        "long-chunks": {"averages": 2, "chunk": 4, "values": 5},
    },
}
