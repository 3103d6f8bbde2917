"""Reference implementations of Luna and ConvLuna."""

import math
from typing import Any

import numpy as np

from seqtk.attention import Role
from seqtk.testing.reference import Array, Problem


def luna(problem: Problem) -> Array:
    """Computes nested attention: slots attend to the filtered context, and queries attend to the slots.

    In the causal role, queries attend to running means of the slots.
    """
    rows, queries, _ = problem.x_BTD.shape
    y_BTD = np.zeros_like(problem.x_BTD)
    for row in range(rows):
        context = [c for c, pad in zip(problem.attended_BSM[row], problem.pad_BS[row], strict=True) if not pad]
        wanted = range(queries) if problem.role is Role.CROSS else np.flatnonzero(~problem.pad_BS[row])
        for index, query in enumerate(wanted):
            read = _causal if problem.role is Role.CAUSAL else _bidirectional
            seen = context[: index + 1] if problem.role is Role.CAUSAL else context
            y = read(problem, problem.x_BTD[row, query], seen)
            y_BTD[row, query] = problem.linear("out", y)
    return y_BTD


def _bidirectional(problem: Problem, x: Array, context: list[Array]) -> Array:
    tau_pack, tau_unpack = _temperature(problem, "pack"), _temperature(problem, "unpack")
    keys = _filtered(problem, [_use(problem, "pack_key", c) for c in context])
    values = _filtered(problem, [_use(problem, "pack_value", c) for c in context])
    packed = []
    for slot in problem.weights["memory"]:
        query = _use(problem, "pack_query", slot)
        y = np.concatenate(
            [_read(problem, query, keys, values, head, tau_pack) for head in range(problem.config.heads)]
        )
        packed.append(problem.linear("out", y) if getattr(problem.config, "sharing", "") == "simplified" else y)
    keys = [_use(problem, "key", y) for y in packed]
    values = [_use(problem, "value", y) for y in packed]
    query = _use(problem, "query", x)
    return np.concatenate(
        [_read(problem, query, keys, values, head, tau_unpack) for head in range(problem.config.heads)]
    )


def _read(problem: Problem, query: Array, keys: list[Array], values: list[Array], head: int, tau: float) -> Array:
    logits = [problem.head(query, head) @ problem.head(key, head) / tau for key in keys]
    largest = max(logits)
    exponentials = [math.exp(logit - largest) for logit in logits]
    total = sum(exponentials)
    return sum(
        (e / total * problem.head(v, head) for e, v in zip(exponentials, values, strict=True)),
        start=0 * problem.head(query, head),
    )


def _causal(problem: Problem, x: Array, context: list[Array]) -> Array:
    """Returns the output for x, the last position of the context, before the output projection.

    Slot p has the key k_p = mean of w_ps k_s and the value v_p = mean of w_ps v_s, where w_ps = log2(1 + 2^logit).
    """
    pack_keys, keys, values = (
        _filtered(problem, [_use(problem, use, c) for c in context]) for use in ("pack_key", "key", "value")
    )
    heads = []
    for head in range(problem.config.heads):
        slot_keys, slot_values = [], []
        for slot in problem.weights["memory"]:
            query = problem.head(_use(problem, "pack_query", slot), head)
            logits = [query @ problem.head(key, head) / _temperature(problem, "pack") for key in pack_keys]
            weights = [math.log2(1 + 2**logit) for logit in logits]
            slot_keys.append(np.mean([w * problem.head(k, head) for w, k in zip(weights, keys, strict=True)], axis=0))
            slot_values.append(
                np.mean([w * problem.head(v, head) for w, v in zip(weights, values, strict=True)], axis=0)
            )
        query = problem.head(_use(problem, "query", x), head)
        exponentials = [math.exp(query @ key / _temperature(problem, "unpack")) for key in slot_keys]
        total = sum(exponentials)
        heads.append(sum(e / total * v for e, v in zip(exponentials, slot_values, strict=True)))
    return np.concatenate(heads)


def _use(problem: Problem, use: str, vector: Array) -> Array:
    """Applies the projection for a use such as "pack_key". The projection may be tied, shared or absent."""
    sharing, tied = getattr(problem.config, "sharing", "none"), problem.config.tie_kv
    if use.endswith("value"):
        if sharing == "simplified":
            return vector
        use = use.replace("value", "key") if tied else use
    return problem.linear(use if sharing == "none" else use.removeprefix("pack_"), vector)


def _temperature(problem: Problem, part: str) -> float:
    mode = getattr(problem.config, f"{part}_temperature", "sqrt")
    if mode == "learn":
        return math.exp(problem.weights[f"log_{part}_temperature"].item())
    return 1.0 if mode == "unit" else math.sqrt(problem.x_BTD.shape[2] / problem.config.heads)


def _filtered(problem: Problem, vectors: list[Array]) -> list[Array]:
    """Returns one filtered vector per window. Window j has `kernel_size` vectors from j · stride on.

    With stride 1, window j is centered at j, or ends at j in the causal role.
    """
    kind = getattr(problem.config, "filter", "none")
    if kind == "none":
        return vectors
    size, stride = problem.config.kernel_size, problem.config.stride
    before = size - 1 if problem.role is Role.CAUSAL else (size - 1) // 2 if stride == 1 else 0
    found = []
    for start in range(0, len(vectors), stride):
        window = {tap: start + tap - before for tap in range(size) if 0 <= start + tap - before < len(vectors)}
        if kind == "conv":
            heads = [
                sum(problem.weights["kernel"][head, tap] * problem.head(vectors[s], head) for tap, s in window.items())
                for head in range(problem.config.heads)
            ]
            found.append(np.concatenate(heads))
        else:
            reduce = np.max if kind == "max_pool" else np.mean
            found.append(reduce([vectors[s] for s in window.values()], axis=0))
    return found


REFERENCES = {"luna": luna, "convluna": luna}
ALONE = Role.ENCODER | Role.CAUSAL
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "luna": {
        "": {"memory_size": 3},
        "untied": {"memory_size": 3, "tie_kv": False},
        "no-bias": {"memory_size": 3, "bias": False},
    },
    "convluna": {
        "": {"memory_size": 3},
        "max-pool": {"memory_size": 3, "filter": "max_pool", "kernel_size": 3, "pack_temperature": "unit"},
        "mean-pool": {"memory_size": 3, "filter": "mean_pool", "kernel_size": 2, "unpack_temperature": "sqrt"},
        "no-filter": {"memory_size": 3, "filter": "none", "tie_kv": True, "bias": False},
        "shared": {"memory_size": 3, "sharing": "qkv", "roles": ALONE},
        "shared-tied": {"memory_size": 4, "sharing": "qkv", "tie_kv": True, "roles": ALONE},
        "simplified": {"memory_size": 4, "sharing": "simplified", "roles": ALONE},
        "strided": {"memory_size": 3, "kernel_size": 3, "stride": 2, "roles": ~Role.CAUSAL},
        "strided-pool": {
            "memory_size": 3,
            "filter": "max_pool",
            "kernel_size": 2,
            "stride": 2,
            "roles": ~Role.CAUSAL,
        },
    },
}
