"""Freezes weights, and scales the learning rates of parts of a model.

A pattern is the name of a weight or of a module. The name of a module selects all weights in it. `*` matches any text,
`?` any character and `[01]` one of the characters: `encoder`, `encoder.blocks.[01]`, `*.norm`. A shared weight matches
by any of its names.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from seqtk.config.fields import setting
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest


@dataclass(frozen=True)
class RateScale:
    """A factor for the learning rate of some weights."""

    name: str = setting("", help="Name of a weight or module; *, ? and [01] are wildcards.")
    scale: float | None = setting(None, above=0, help="Factor of the learning rate.")


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the weights that match any of the patterns.

    Raises:
        UserError: If a pattern matches no weight, or if all weights are frozen.
    """
    frozen = {name for pattern in patterns for name in matching(model, pattern, key="freeze")}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"freeze={','.join(patterns)} freezes all weights.", "Remove a pattern from freeze.")


def rate_scales(model: nn.Module, scales: Sequence[RateScale], *, layer_decay: float = 1.0) -> dict[str, float]:
    """Returns the factor of each weight's learning rate: its layer-wise decay times the last scale that matches it.

    Args:
        model: The model.
        scales: The factors of learning rates, each with a pattern for the names of weights.
        layer_decay: The layer-wise decay d. The factor is d for the last block of a stack, d² for the block before it,
            and so on. It is 1 for the head, and d^(n + 1) for embeddings if the deepest stack has n blocks (Clark et
            al. 2020, ELECTRA, appendix B).

    Raises:
        UserError: If a scale has no factor, if its name matches no weight, or if `layer_decay` is not 1 and the model
            has no blocks.
    """
    factors = _layerwise_factors(model, layer_decay)
    named: dict[str, float] = {}
    for scale in scales:
        names = matching(model, scale.name, key="lr_scales.name")
        if scale.scale is None:
            raise UserError(
                f"lr_scales: {scale.name} has no scale.", f"Set both: lr_scales=[{{name: {scale.name}, scale: 0.1}}]."
            )
        named |= dict.fromkeys(names, scale.scale)
    return {name: factor * named.get(name, 1.0) for name, factor in factors.items()}


def scale_rates(optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]) -> None:
    """Splits the parameter groups of an optimizer by factor, and sets the `lr_scale` that `set_rate` applies.

    The list of groups is changed in place, because an optimizer that wraps another one shares the list.
    """
    factor_of = {id(parameter): factors[name] for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            parts[factor_of[id(parameter)]].append(parameter)
        for factor, parameters in parts.items():
            groups.append({**group, "params": parameters, "lr_scale": factor * group.get("lr_scale", 1.0)})
    optimizer.param_groups[:] = groups


def matching(model: nn.Module, pattern: str, *, key: str) -> set[str]:
    """Returns the names of the weights that match `pattern`, one name per weight. Raises UserError if none match."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    names = list(model.named_parameters(remove_duplicate=False))
    found = {
        first[id(parameter)]
        for name, parameter in names
        if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    }
    if not found:
        modules = dict.fromkeys(part for name, _ in names for part in _prefixes(name))
        raise UserError(
            f"{key}={pattern}: no weight or module of the model matches.",
            nearest(pattern, modules)
            or f"Names of weights begin with {', '.join(dict.fromkeys(n.split('.')[0] for n, _ in names))}.",
        )
    return found


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


_BLOCK = re.compile(r"(.*\bblocks)\.(\d+)\.")


def _layerwise_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Returns a dict: name of a weight → factor, which depends on the position of the weight's block in the stack."""
    names = [name for name, _ in model.named_parameters()]
    if decay == 1.0:
        return dict.fromkeys(names, 1.0)
    blocks = {name: (found[1], int(found[2])) for name in names if (found := _BLOCK.match(name))}
    if not blocks:
        raise UserError(
            f"layer_decay={decay:g}: the model has no blocks.", "Remove layer_decay, or use lr_scales instead."
        )
    depth: dict[str, int] = {}
    for stack, number in blocks.values():
        depth[stack] = max(depth.get(stack, 0), number + 1)
    factors: dict[str, float] = {}
    level = max(depth.values()) + 1
    for name in names:  # in the order of the model: embeddings, blocks, head
        if name in blocks:
            stack, number = blocks[name]
            factors[name], level = decay ** (depth[stack] - number), 0
        else:
            factors[name] = decay**level
    return factors
