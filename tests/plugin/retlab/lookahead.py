"""An optimizer around another one: Lookahead (Zhang et al. 2019, arXiv 1907.08610)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from seqtk.config.fields import setting
from seqtk.optim import OptimizerConfig, optimizers
from seqtk.optim.adam import AdamConfig


@dataclass(frozen=True)
class LookaheadConfig(OptimizerConfig):
    """Config of slow weights that follow the weights of another optimizer."""

    inner: OptimizerConfig = AdamConfig()
    steps: int = setting(5, at_least=1, help="Updates of the inner optimizer for each one of the slow weights.")
    alpha: float = setting(0.5, above=0, at_most=1, help="How far the slow weights move toward the fast weights.")


@optimizers.register("lookahead", LookaheadConfig)
class Lookahead(torch.optim.Optimizer):
    """After every `steps` updates, computes slow += α (fast - slow), and sets fast = slow."""

    def __init__(self, config: LookaheadConfig, model: nn.Module) -> None:
        self.inner = optimizers.build(config.inner, model)
        super().__init__(self.inner.param_groups, {})
        self.param_groups = self.inner.param_groups
        self.inner.state = self.state  # one state, which a checkpoint holds
        self.config = config

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        weights = [weight for group in self.param_groups for weight in group["params"]]
        first = [weight.clone() for weight in weights if "slow" not in self.state[weight]]
        self.inner.step()  # makes its own state first: torch's optimizers expect an empty one
        for weight, slow in zip(weights if first else (), first, strict=True):
            self.state[weight] |= {"slow": slow, "count": torch.zeros(())}
        for weight in weights:
            state = self.state[weight]
            state["count"] += 1
            if int(state["count"]) % self.config.steps == 0:
                state["slow"].lerp_(weight, self.config.alpha)
                weight.copy_(state["slow"])
