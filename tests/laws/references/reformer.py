"""Reference implementation of Reformer: attention among positions in the same hash bucket."""

import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def reformer(problem: Problem) -> Array:
    """Computes attention with one softmax over the union of the pairs that the rounds of hashing find."""
    y_BTD = np.zeros_like(problem.x_BTD)
    for row in range(len(y_BTD)):
        real = np.flatnonzero(~problem.pad_BS[row])
        shared = [problem.linear("query_key", problem.x_BTD[row, index]) for index in real]
        heads = []
        for head in range(problem.config.heads):
            queries = [problem.head(vector, head) for vector in shared]
            values = [problem.head(problem.linear("value", problem.x_BTD[row, index]), head) for index in real]
            pairs = set()
            for rotation in problem.weights["rotations"][head]:
                pairs |= found(
                    problem, [int(np.argmax(np.concatenate([q @ rotation, -q @ rotation]))) for q in queries]
                )
            outputs = []
            for t, q in enumerate(queries):
                seen = [s for s in range(len(real)) if (t, s) in pairs and s != t] or [t]
                e = [math.exp(q @ queries[s] / np.linalg.norm(queries[s]) / math.sqrt(len(q))) for s in seen]
                outputs.append(sum(weight * values[s] for weight, s in zip(e, seen, strict=True)) / sum(e))
            heads.append(outputs)
        for t, index in enumerate(real):
            y_BTD[row, index] = problem.linear("out", np.concatenate([outputs[t] for outputs in heads]))
    return y_BTD


def found(problem: Problem, buckets: list[int]) -> set[tuple[int, int]]:
    """Returns the pairs (query, key) that one round of hashing finds."""
    chunk = min(problem.config.chunk, problem.x_BTD.shape[1])
    order = sorted(range(len(buckets)), key=lambda t: (buckets[t], t))
    pairs = set()
    for query_place, t in enumerate(order):
        for key_place, s in enumerate(order):
            if problem.role.name == "CAUSAL":
                near = 0 <= query_place - key_place < problem.config.chunk
            else:
                near = query_place // chunk - key_place // chunk in (0, 1)
            if near and buckets[t] == buckets[s]:
                pairs.add((t, s))
    return pairs


REFERENCES = {"reformer": reformer}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    # Redrawing the hash would give a different layer at each training step.
    "reformer": {
        "": {"buckets": 2, "chunk": 2, "rounds": 2, "redraw": False},
        "four": {"buckets": 4, "chunk": 3, "rounds": 3, "redraw": False, "bias": False},
    },
}
