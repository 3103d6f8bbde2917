"""Reference implementation of Transformer-XL, whose positions see the last `memory_length` positions."""

import math
from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem, softmax_average


def sinusoid(distance: int, dim: int) -> Array:
    """Returns the sines, then the cosines, of distance · 10000^(-2i/D)."""
    angles = [distance / 10000 ** (2 * i / dim) for i in range(dim // 2)]
    return np.array([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])


class Near(Problem):
    def sees(self, row: int, query: int, key: int) -> bool:
        reach = self.config.evaluation_memory_length or self.config.memory_length
        return super().sees(row, query, key) and query - key <= reach


def transformer_xl(problem: Problem) -> Array:
    def logit(row: int, head: int, query: int, key: int) -> float:
        distance = query - key
        q = problem.head(problem.linear("query", problem.x_BTD[row, query]), head)
        k = problem.head(problem.linear("key", problem.x_BTD[row, key]), head)
        counted = min(distance, problem.config.clamp_length or distance)
        r = problem.head(problem.linear("distance", sinusoid(counted, problem.x_BTD.shape[2])), head)
        content = (q + problem.weights["content_bias"][head, 0]) @ k
        return float(content + (q + problem.weights["distance_bias"][head, 0]) @ r) / math.sqrt(len(q))

    return softmax_average(
        Near(problem.config, problem.role, problem.weights, problem.x_BTD, problem.attended_BSM, problem.pad_BS), logit
    )


REFERENCES = {"transformer_xl": transformer_xl}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "transformer_xl": {"": {}, "short": {"memory_length": 2, "bias": True}, "clamped": {"clamp_length": 2}},
}
