"""Muon, based on torch's implementation, for the matrices of hidden layers; AdamW for all other weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from seqtk.config.fields import probability, setting
from seqtk.optim.adam import BETAS_HELP, EPS_HELP
from seqtk.optim.base import (
    DECAY_HELP,
    WEIGHT_DECAY_HELP,
    OptimizerConfig,
    can_fuse,
    optimizers,
    parameter_groups,
    trainable_parameters,
)


@dataclass(frozen=True)
class MuonConfig(OptimizerConfig):
    """Muon for the matrices of hidden layers, AdamW for all other weights."""

    weight_decay: float = setting(0.1, at_least=0, help=WEIGHT_DECAY_HELP)
    decay: Literal["all", "matrices"] = setting("matrices", help=DECAY_HELP)
    momentum: float = probability(0.95, help="Muon: decay rate of the running mean of the gradient.")
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = setting(
        "match_rms_adamw", help="Muon: how the step size depends on the shape of a matrix."
    )
    adamw_lr: float | None = setting(
        None, at_least=0, help="AdamW: peak learning rate. null: lr. Set it if adjust_lr_fn=original."
    )
    betas: tuple[float, float] = probability((0.9, 0.98), help=f"AdamW: {BETAS_HELP[0].lower()}{BETAS_HELP[1:]}")
    eps: float = setting(1e-8, at_least=0, help=f"AdamW: {EPS_HELP[0].lower()}{EPS_HELP[1:]}")


@optimizers.register("muon", MuonConfig)
class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): steps along the orthogonalized running mean of the gradient.

    The update of a weight w with gradient g is b ← μ b + (1 − μ) g;
    w ← w − lr · decay · w − lr · s · O((1 − μ) g + μ b).

    O orthogonalizes: five Newton–Schulz steps in bfloat16 move all singular values to about 0.7 … 1.2. The factor s of
    an A × B matrix is 0.2 √max(A, B) with `adjust_lr_fn=match_rms_adamw` (Liu et al. 2025: steps as large as AdamW's,
    so both use the same lr), and √max(1, A / B) with `original`, which requires a larger lr (Jordan: 0.02) and
    therefore a separate `adamw_lr`. The schedule multiplies both rates by the same factor.

    Muon updates the weights of all `nn.Linear` modules except embeddings and heads, which are recognized by name: a
    part of the dotted name is `head` or contains `embed`. AdamW updates all other parameters: embedding tables, heads,
    biases, norms, and parameters that are not in an `nn.Linear`, such as stacks of one matrix per head or the logits of
    a random Synthesizer. A projection to several heads is one matrix.

    State per weight: `momentum_buffer` b, or the state of AdamW. AdamW uses torch's fused kernel where possible. There
    is no fused kernel for Muon.
    """

    def __init__(self, config: MuonConfig, model: nn.Module) -> None:
        parameters = trainable_parameters(model)
        hidden = hidden_matrices(model)
        matrices = [p for p in parameters if id(p) in hidden]
        others = [p for p in parameters if id(p) not in hidden]
        scale = 1.0 if config.adamw_lr is None else config.adamw_lr / config.lr
        fused = can_fuse(others)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                parameter_groups(config, matrices),
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn=config.adjust_lr_fn,
            )
            self.parts.append(muon)
        if others:
            adamw = torch.optim.AdamW(
                parameter_groups(config, others),
                lr=scale * config.lr,
                betas=config.betas,
                eps=config.eps,
                fused=fused,
            )
            self.parts.append(adamw)
        groups = [(number, group) for number, part in enumerate(self.parts) for group in part.param_groups]
        for number, group in groups:
            group["part"] = number
            group["lr_scale"] = scale if "betas" in group else 1.0
        super().__init__([group for _, group in groups], {})
        self.defaults["fused"] = fused

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one update: Muon and AdamW update their parameter groups. This object stores all state."""
        loss = closure() if closure is not None else None
        for number, part in enumerate(self.parts):
            part.param_groups = [group for group in self.param_groups if group["part"] == number]
            part.state = self.state
            part.step()
        return loss


def hidden_matrices(model: nn.Module) -> set[int]:
    """Returns the `id(parameter)` of each parameter that Muon updates."""
    hidden: set[int] = set()
    excluded: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter_name, parameter in module.named_parameters(recurse=False):
            in_head_or_embedding = any(part == "head" or "embed" in part for part in name.split("."))
            is_hidden = isinstance(module, nn.Linear) and parameter_name == "weight" and not in_head_or_embedding
            (hidden if is_hidden else excluded).add(id(parameter))
    return hidden - excluded
