"""Reference implementation of SimpleTRON."""

from typing import Any

import numpy as np

from seqtk.testing.reference import Array, Problem


def simpletron(problem: Problem) -> Array:
    """Computes Σ_s (q_t · k_s) v_s / √(n E) over the n visible keys, and the output projection if configured."""
    config = problem.config
    rows, queries, dim = problem.x_BTD.shape
    y_BTD = np.zeros((rows, queries, dim))
    for row in range(rows):
        for query in range(queries):
            keys = [s for s in range(problem.attended_BSM.shape[1]) if problem.sees(row, query, s)]
            heads = []
            for head in range(config.heads):
                q = problem.head(problem.linear("query", problem.x_BTD[row, query]), head)
                total = np.zeros(len(q))
                for s in keys:
                    k = problem.head(problem.linear("key", problem.attended_BSM[row, s]), head)
                    total += (q @ k) * problem.head(problem.linear("value", problem.attended_BSM[row, s]), head)
                divisor = len(q) if config.head_scale else 1
                if config.length_factor == "sqrt":
                    divisor *= max(len(keys), 1)
                heads.append(total / np.sqrt(divisor))
            y = np.concatenate(heads)
            y_BTD[row, query] = problem.linear("out", y) if config.out_projection else y
    return y_BTD


REFERENCES = {"simpletron": simpletron}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "simpletron": {
        "": {},
        "out": {"out_projection": True},
        "no-scale": {"length_factor": "none", "head_scale": False, "bias": False},
    },
}
