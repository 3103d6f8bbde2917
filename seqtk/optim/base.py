"""What all optimizers share: their registry, their groups of parameters, and the rate of each group.

`optimizers.build(config, model)` is a `torch.optim.Optimizer` of the parameters that need a gradient. Its rate is set
before each update from a schedule (`seqtk.optim.schedules`), of which `lr` is the peak. All that an update depends on,
but for the settings and that rate, is in tensors under `state[parameter]`, so that a checkpoint of these is whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter

from seqtk.config.registry import Registry
from seqtk.utils.errors import UserError

FUSED_DEVICES = ("cpu", "cuda")
"""Where torch has kernels that update all parameters in one pass (on a CPU: 3 to 7 times as fast)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """What every optimizer has."""

    lr: float = 5e-4  # the peak of the schedule
    weight_decay: float = 0.0  # each update takes lr × weight_decay × the weight off the weight
    decay: Literal["all", "matrices"] = "all"  # what weight_decay applies to; matrices: not biases, norms and gains


optimizers: Registry[torch.optim.Optimizer] = Registry("optimizer", OptimizerConfig)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Every group's rate becomes `lr`, times the group's `share` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("share", 1.0)


def trained(model: nn.Module) -> list[Parameter]:
    """The parameters that need a gradient, in the model's order."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("There is nothing to train: no parameter of the model needs a gradient.")
    return parameters


def groups(config: OptimizerConfig, parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    """The parameters in groups, each with its weight decay.

    The groups do not depend on the amount of weight decay, so that a run may resume with another.
    """
    if not config.weight_decay >= 0:
        raise UserError(f"optimizer.weight_decay={config.weight_decay} must be at least 0.")
    parameters = list(parameters)
    decayed = [p for p in parameters if config.decay == "all" or p.ndim >= 2]
    others = [p for p in parameters if config.decay == "matrices" and p.ndim < 2]
    both = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def can_fuse(parameters: Iterable[Parameter]) -> bool:
    """Whether torch's fused kernels take all of the parameters."""
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)


def refused(refusal: ValueError) -> UserError:
    """What torch says of settings that it does not take."""
    return UserError(f"The optimizer refuses its settings: {refusal}.", "They are under the key 'optimizer'.")


def check_momentum(momentum: float) -> None:
    """Raises UserError for a momentum under which the steps would grow without end."""
    if not 0 <= momentum < 1:
        raise UserError(f"optimizer.momentum={momentum} must be at least 0 and below 1.")
