"""Optimizers: torch's own, with the defaults of the field, on torch's fused kernels where the device has them.

`optimizers.build(config, model.named_parameters())` is a `torch.optim.Optimizer`; parameters that need no gradient are
left out. Its rate is set before each update from a schedule (`seqtk.optim.schedules`), of which `lr` is the peak.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import Parameter

from seqtk.errors import UserError
from seqtk.registry import Registry

FUSED_DEVICES = ("cpu", "cuda")
"""Where torch has kernels that update all parameters in one pass (on a CPU: 3 to 7 times as fast)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """What every optimizer has."""

    lr: float = 5e-4  # the peak of the schedule
    weight_decay: float = 0.0  # each update takes lr × weight_decay × the weight off the weight
    decay: Literal["all", "matrices"] = "all"  # what weight_decay applies to; matrices: not biases, norms and gains


optimizers: Registry[torch.optim.Optimizer] = Registry("optimizer", OptimizerConfig)

NamedParameters = Iterable[tuple[str, Parameter]]


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

    def __init__(self, config: AdamConfig, named_parameters: NamedParameters) -> None:
        groups, fused = _groups(config, named_parameters)
        try:
            super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
        except ValueError as refusal:
            raise _refused(refusal) from None


@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    """AdamW with torch's defaults; only matrices decay."""

    weight_decay: float = 0.01  # each update takes lr × weight_decay × the weight off the weight
    decay: Literal["all", "matrices"] = "matrices"  # what weight_decay applies to; matrices: not biases, norms, gains
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the running means of the gradient and of its square


@optimizers.register("adamw", AdamWConfig)
class AdamW(Adam):
    """The same update as `adam`, with the defaults under which it is known as AdamW (Loshchilov and Hutter 2019)."""


@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """Gradient descent; with momentum and `nesterov`, fairseq's `nag` but for its weight decay."""

    lr: float = 0.1  # the peak of the schedule
    momentum: float = 0.0  # share of the last step that is made again
    nesterov: bool = False  # the gradient counts as if taken after that


@optimizers.register("sgd", SGDConfig)
class SGD(torch.optim.SGD):
    """w ← w − lr · u, u ← momentum · u + g + decay · w (Sutskever et al. 2013): weight decay is not decoupled.

    State per weight: `momentum_buffer` u, where there is momentum.
    """

    def __init__(self, config: SGDConfig, named_parameters: NamedParameters) -> None:
        groups, fused = _groups(config, named_parameters)
        try:
            super().__init__(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
        except ValueError as refusal:
            raise _refused(refusal) from None


def _groups(config: OptimizerConfig, named_parameters: NamedParameters) -> tuple[list[dict[str, Any]], bool]:
    """The parameter groups, with their weight decay, and whether the fused kernels take all of the parameters.

    The groups do not depend on the amount of weight decay, so that a run may resume with another.
    """
    parameters = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if not parameters:
        raise UserError("There is nothing to train: no parameter of the model needs a gradient.")
    fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    decayed = [p for p in parameters if config.decay == "all" or p.ndim >= 2]
    others = [p for p in parameters if config.decay == "matrices" and p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]], fused


def _refused(refusal: ValueError) -> UserError:
    return UserError(f"The optimizer refuses its settings: {refusal}.", "They are under the key 'optimizer'.")
