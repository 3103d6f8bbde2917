"""Gradient descent with momentum, on torch's kernels: torch's own, and fairseq's `nag`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seqtk.optim.base import OptimizerConfig, can_fuse, check_momentum, groups, optimizers, refused, trained


class _Descent(torch.optim.SGD):
    """torch's SGD, whose momentum starts from zero at a weight's first gradient.

    torch's fused kernel wants the first gradients of all weights in one update; a weight that the first batch makes no
    use of has its own later.
    """

    def __init__(self, config: "SGDConfig | NAGConfig", model: nn.Module, *, nesterov: bool) -> None:
        check_momentum(config.momentum)
        parameters = trained(model)
        fused = can_fuse(parameters)
        try:
            super().__init__(
                groups(config, parameters), lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused
            )
        except ValueError as refusal:
            raise refused(refusal) from None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)


@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """Gradient descent, with or without momentum."""

    lr: float = 0.1  # the peak of the schedule
    momentum: float = 0.0  # share of the last step that is made again
    nesterov: bool = False  # the gradient counts as if taken after that


@optimizers.register("sgd", SGDConfig)
class SGD(_Descent):
    """w ← w − lr · u, u ← momentum · u + g + decay · w (Sutskever et al. 2013): weight decay is not decoupled.

    State per weight: `momentum_buffer` u, where there is momentum.
    """

    def __init__(self, config: SGDConfig, model: nn.Module) -> None:
        super().__init__(config, model, nesterov=config.nesterov)


@dataclass(frozen=True)
class NAGConfig(OptimizerConfig):
    """Nesterov's accelerated gradient, as fairseq's WikiText-103 models were trained."""

    lr: float = 0.25  # the peak of the schedule
    momentum: float = 0.99  # share of the last step that is made again


@optimizers.register("nag", NAGConfig)
class NAG(_Descent):
    """Nesterov's gradient (Sutskever et al. 2013) with decoupled weight decay: fairseq's `nag`.

    w ← (1 − lr · decay) · w;  u ← μ u + g;  w ← w − lr · (g + μ u). fairseq keeps the step v = −lr · u instead of u:
    v ← μ (lr / lr₋) v − lr · g and w ← w + μ² (lr / lr₋) v₋ − (1 + μ) lr · g, where ₋ marks what the update before had.
    Put in, that is the same; but u needs no lr₋, which a rate of 0 would make a division by zero and which a
    checkpoint would have to hold. State per weight: `momentum_buffer` u.
    """

    def __init__(self, config: NAGConfig, model: nn.Module) -> None:
        super().__init__(config, model, nesterov=True)
        for group in self.param_groups:  # torch's own weight decay would be added to the gradient
            group["decoupled_decay"], group["weight_decay"] = group["weight_decay"], 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        for group in self.param_groups:
            decayed = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["decoupled_decay"] and decayed:
                torch._foreach_mul_(decayed, 1 - group["lr"] * group["decoupled_decay"])
        return super().step(closure)
