"""Reference implementation of Sinkhorn attention: each block attends to itself and to a block of sorted keys."""

import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def sinkhorn(problem: Problem) -> Array:
    """Computes one softmax over the keys of the query's block and over the sorted keys.

    A sorted key is the mean, weighted by the sorting matrix, of the keys at the same position of all blocks.
    """
    block = problem.config.block
    y_BTD = np.zeros_like(problem.x_BTD)
    for row in range(len(y_BTD)):
        real = np.flatnonzero(~problem.pad_BS[row])
        tokens = [problem.x_BTD[row, index] for index in real]
        blocks = [range(start, min(start + block, len(tokens))) for start in range(0, len(tokens), block)]
        for t, index in enumerate(real):
            heads = []
            for head in range(problem.config.heads):
                share = doubly_stochastic(problem, [sum(tokens[s] for s in members) for members in blocks], head)
                keys, values = (
                    [problem.head(problem.linear(name, token), head) for token in tokens] for name in ("key", "value")
                )
                q = problem.head(problem.linear("query", tokens[t]), head)
                seen = [(1.0, keys[s], values[s]) for s in blocks[t // block]]
                for place in range(block):
                    has = [
                        (share[t // block, j], members[place])
                        for j, members in enumerate(blocks)
                        if place < len(members)
                    ]
                    mass = sum(p for p, _ in has)
                    if has:
                        seen.append((mass, *(sum(p * y[s] for p, s in has) / mass for y in (keys, values))))
                e = [mass * math.exp(q @ k / math.sqrt(len(q))) for mass, k, _ in seen]
                heads.append(sum(weight * v for weight, (_, _, v) in zip(e, seen, strict=True)) / sum(e))
            y_BTD[row, index] = problem.linear("out", np.concatenate(heads))
    return y_BTD


def doubly_stochastic(problem: Problem, sums: list[Array], head: int) -> Array:
    """Returns exp(logits / temperature), whose columns and rows are alternately divided by their sums."""
    most = -(-problem.config.max_length // problem.config.block)
    logits = np.stack([problem.linear("sort", total)[head * most :][: len(sums)] for total in sums])
    p: Array = np.exp((logits - logits.max()) / problem.config.temperature)
    for _ in range(problem.config.iterations):
        p = p / p.sum(0, keepdims=True)
        p = p / p.sum(1, keepdims=True)
    return p


REFERENCES = {"sinkhorn": sinkhorn}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    # Gumbel noise would give a different layer at each training step.
    "sinkhorn": {
        "": {"block": 2, "gumbel": False},
        "three": {"block": 3, "iterations": 2, "temperature": 1.5, "gumbel": False, "bias": False},
        "one": {"block": 1, "gumbel": False},
    },
}
