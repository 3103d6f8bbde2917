"""Adam and AdamW, based on torch's implementation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from seqtk.config.fields import probability, setting
from seqtk.optim.base import (
    DECAY_HELP,
    WEIGHT_DECAY_HELP,
    OptimizerConfig,
    can_fuse,
    optimizers,
    parameter_groups,
    trainable_parameters,
)

BETAS_HELP = "Decay rates of the running means of the gradient and of its square."
EPS_HELP = "Added to the denominator of the step, the root of the running mean of squared gradients."


@dataclass(frozen=True)
class AdamConfig(OptimizerConfig):
    """Adam, with the default settings of fairseq's Transformers."""

    betas: tuple[float, float] = probability((0.9, 0.98), help=BETAS_HELP)
    eps: float = setting(1e-8, at_least=0, help=EPS_HELP)


@optimizers.register("adam", AdamConfig)
class Adam(torch.optim.AdamW):
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019), as in fairseq's Adam.

    Update t of a weight w with gradient g is m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;
    w ← w − lr · decay · w − lr · m̂ / (√v̂ + eps), with m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ).
    State per weight: `exp_avg` m, `exp_avg_sq` v, and `step` t. fairseq adds eps to √v instead of √v̂. The results
    differ only for gradients near eps.
    """

    def __init__(self, config: AdamConfig, model: nn.Module) -> None:
        parameters = trainable_parameters(model)
        groups, fused = parameter_groups(config, parameters), can_fuse(parameters)
        super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    """AdamW, with torch's default settings. Weight decay applies to matrices only."""

    weight_decay: float = setting(0.01, at_least=0, help=WEIGHT_DECAY_HELP)
    decay: Literal["all", "matrices"] = setting("matrices", help=DECAY_HELP)
    betas: tuple[float, float] = probability((0.9, 0.999), help=BETAS_HELP)


@optimizers.register("adamw", AdamWConfig)
class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019). The update equals `adam`, whose weight decay is also decoupled.

    The default weight decay, betas and eps equal torch's AdamW, but the decay applies to matrices only.
    """
