"""Every attention layer once more: loops over rows, heads, queries and keys in float64, written from the equations.

Apart from the implementation on purpose: only its weights, read by name, are used. What every oracle needs is here; the
oracles are in `tests/laws/families`, one file a family. The implementations' docstrings say where the equations come
from.
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

ORACLES: dict[str, Callable[["Problem"], Array]] = {}
"""Kind → what it must compute; filled by `tests/laws/families`, and by the tests of plug-ins."""


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
) -> Array:
    """What `layer` must give."""
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
