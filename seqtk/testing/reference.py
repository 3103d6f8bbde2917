"""Tools for reference implementations, which loop over rows, heads, queries and keys in float64 NumPy.

A reference is a function of a `Problem` that returns the outputs of the layer, an array of the shape of `x_BTD`. It
restates the equations of a paper. It shares no code with the layer, and reads only the layer's weights, by name.

B batch, T query length, S key length, D width of the layer, M width of the memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from seqtk.attention import Attention, Role

Array = np.ndarray[Any, np.dtype[np.float64]]
Logit = Callable[[int, int, int, int], float]
"""A function that returns the attention logit for (row, head, query, key)."""


@dataclass(frozen=True)
class Problem:
    """The settings of a layer, and its weights and input as NumPy arrays."""

    config: Any
    role: Role
    weights: dict[str, Array]
    """Name → parameter or buffer."""
    x_BTD: Array
    attended_BSM: Array
    """The sequence that queries attend to: the memory of a CROSS layer, otherwise `x_BTD`."""
    pad_BS: Array
    """True at padding of `attended_BSM`."""
    _cache: dict[tuple[str, bytes], Array] = field(default_factory=dict, init=False, repr=False)

    def sees(self, row: int, query: int, key: int) -> bool:
        """Returns True if the query can attend to the key in softmax attention of this role."""
        return not self.pad_BS[row, key] and not (self.role is Role.CAUSAL and key > query)

    def head(self, vector: Array, head: int) -> Array:
        """Returns the part of a vector that belongs to one of `config.heads` heads."""
        size = len(vector) // self.config.heads
        return vector[head * size : (head + 1) * size]

    def linear(self, name: str, vector: Array) -> Array:
        """Applies the linear layer `name` (weight and, if any, bias) to a vector."""

        def product(vector: Array) -> Array:
            y: Array = self.weights[f"{name}.weight"] @ vector
            return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

        return self.once(name, product, vector)

    def once(self, name: str, function: Callable[[Array], Array], vector: Array) -> Array:
        """Returns `function(vector)`. The result is cached, because references often compute the same keys again."""
        key = name, vector.tobytes()
        if key not in self._cache:
            self._cache[key] = function(vector)
        return self._cache[key]


Reference = Callable[[Problem], Array]


def reference_output(
    reference: Reference,
    layer: Attention,
    x_BTD: torch.Tensor,
    memory_BSM: torch.Tensor | None,
    *,
    pad_BS: torch.Tensor,
) -> Array:
    """Returns the output of `reference` with the weights of `layer`."""
    problem = Problem(
        config=layer.config,
        role=layer.role,
        weights={name: value.double().cpu().numpy() for name, value in layer.state_dict().items()},
        x_BTD=x_BTD.double().cpu().numpy(),
        attended_BSM=(x_BTD if memory_BSM is None else memory_BSM).double().cpu().numpy(),
        pad_BS=pad_BS.cpu().numpy(),
    )
    return reference(problem)


def softmax_average(problem: Problem, logit: Logit) -> Array:
    """Returns the output of softmax attention with the logits that `logit` computes.

    Each head averages the values that a query sees, with weights softmax(logits). `out` projects the result.
    """
    rows, queries, _ = problem.x_BTD.shape
    outputs = []
    for row in range(rows):
        values = [problem.linear("value", token) for token in problem.attended_BSM[row]]
        values_HSK = [np.array([problem.head(value, head) for value in values]) for head in range(problem.config.heads)]
        for query in range(queries):
            keys = [key for key in range(len(values)) if problem.sees(row, query, key)]
            heads = []
            for head, values_SK in enumerate(values_HSK):
                average = 0 * values_SK[0]
                if keys:
                    weights = np.array([math.exp(logit(row, head, query, key)) for key in keys])
                    average = weights @ values_SK[keys] / weights.sum()
                heads.append(average)
            outputs.append(problem.linear("out", np.concatenate(heads)))
    return np.stack(outputs).reshape(rows, queries, -1)
