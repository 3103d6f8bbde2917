"""Adam, from torch, with the defaults of the field."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from seqtk.optim.base import OptimizerConfig, can_fuse, groups, optimizers, refused, trained


@dataclass(frozen=True)
class AdamConfig(OptimizerConfig):
    """Adam as fairseq's Transformers were trained."""

    betas: tuple[float, float] = (0.9, 0.98)  # decay of the running means of the gradient and of its square
    eps: float = 1e-8  # keeps the division by the root of the second from exploding


@optimizers.register("adam", AdamConfig)
class Adam(torch.optim.AdamW):
    """Adam (Kingma and Ba 2015); weight decay, if any, is decoupled (Loshchilov and Hutter 2019), as in fairseq's Adam.

    m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  w ← w − lr · decay · w − lr · m̂ / (√v̂ + eps), m̂ = m / (1 − β₁ᵗ) and
    v̂ = v / (1 − β₂ᵗ) after t updates. State per weight: `exp_avg` m, `exp_avg_sq` v, and `step` t. fairseq adds its eps
    to √v instead of √v̂: the same but for gradients near eps.
    """

    def __init__(self, config: AdamConfig, model: nn.Module) -> None:
        parameters = trained(model)
        fused = can_fuse(parameters)
        try:
            super().__init__(groups(config, parameters), lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
        except ValueError as refusal:
            raise refused(refusal) from None


@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    """AdamW with torch's defaults; only matrices decay."""

    weight_decay: float = 0.01  # each update takes lr × weight_decay × the weight off the weight
    decay: Literal["all", "matrices"] = "matrices"  # what weight_decay applies to; matrices: not biases, norms, gains
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the running means of the gradient and of its square


@optimizers.register("adamw", AdamWConfig)
class AdamW(Adam):
    """The same update as `adam`, with the defaults under which it is known as AdamW (Loshchilov and Hutter 2019)."""
