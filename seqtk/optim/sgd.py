"""Stochastic gradient descent with momentum: torch's SGD, and fairseq's `nag` based on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seqtk.config.fields import probability, setting
from seqtk.optim.base import (
    OptimizerConfig,
    can_fuse,
    optimizers,
    parameter_groups,
    trainable_parameters,
)
from seqtk.utils.errors import UserError


class _Descent(torch.optim.SGD):
    """torch's SGD, with momentum buffers that are initialized to zero.

    torch's fused kernel creates the buffers of all weights in the same update. That fails if the first batch does not
    use some weights, which then have no gradient.
    """

    def __init__(self, config: "SGDConfig | NAGConfig", model: nn.Module, *, nesterov: bool) -> None:
        parameters = trainable_parameters(model)
        # The fused kernel does not support DTensors, the sharded weights of parallel=fsdp2.
        fused = can_fuse(parameters) and not any(hasattr(parameter, "to_local") for parameter in parameters)
        try:
            groups = parameter_groups(config, parameters)
            super().__init__(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
        except ValueError as error:
            raise UserError(f"optimizer: torch does not accept these settings: {error}.") from None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)


@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent, with or without momentum."""

    lr: float = setting(0.1, above=0, help="Peak learning rate of the schedule.")
    momentum: float = probability(0.0, help="Fraction of the previous step that is added to each step.")
    nesterov: bool = setting(False, help="Nesterov momentum.")


@optimizers.register("sgd", SGDConfig)
class SGD(_Descent):
    """SGD with momentum (Sutskever et al. 2013). Weight decay is added to the gradient, and not decoupled.

    The update of a weight w with gradient g is u ← momentum · u + g + decay · w;  w ← w − lr · u.
    State per weight: `momentum_buffer` u, if momentum is not 0.
    """

    def __init__(self, config: SGDConfig, model: nn.Module) -> None:
        super().__init__(config, model, nesterov=config.nesterov)


@dataclass(frozen=True)
class NAGConfig(OptimizerConfig):
    """Nesterov's accelerated gradient, the optimizer of fairseq's WikiText-103 models."""

    lr: float = setting(0.25, above=0, help="Peak learning rate of the schedule.")
    momentum: float = probability(0.99, help="Fraction of the previous step that is added to each step.")


@optimizers.register("nag", NAGConfig)
class NAG(_Descent):
    """Nesterov's accelerated gradient (Sutskever et al. 2013) with decoupled weight decay: fairseq's `nag`.

    The update of a weight w with gradient g is w ← (1 − lr · decay) · w;  u ← μ u + g;  w ← w − lr · (g + μ u).
    State per weight: `momentum_buffer` u.

    fairseq stores the step v = −lr · u instead of u: v ← μ (lr / lr₋) v − lr · g and w ← w + μ² (lr / lr₋) v₋ − (1 + μ)
    lr · g, where ₋ marks values of the previous update. The results are the same, but u does not require lr₋.
    Checkpoints would have to store lr₋, and it may be 0.
    """

    def __init__(self, config: NAGConfig, model: nn.Module) -> None:
        super().__init__(config, model, nesterov=True)
        for group in self.param_groups:  # torch's weight decay is not decoupled: it is added to the gradient
            group["decoupled_decay"], group["weight_decay"] = group["weight_decay"], 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one update."""
        for group in self.param_groups:
            decayed = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["decoupled_decay"] and decayed:
                torch._foreach_mul_(decayed, self._unless_skipped(1 - group["lr"] * group["decoupled_decay"]))
        return super().step(closure)

    def _unless_skipped(self, factor: float) -> Any:
        """Returns `factor`, or 1 if this update is skipped (see `can_skip`). The choice is made on the device."""
        found_inf = getattr(self, "found_inf", None)
        return factor if found_inf is None else torch.where(found_inf > 0, 1.0, factor)
