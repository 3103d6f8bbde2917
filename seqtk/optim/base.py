"""The base of optimizers: their registry, their groups of parameters, and the learning rate of each group.

`optimizers.build(config, model)` is a `torch.optim.Optimizer` of the parameters that require a gradient. Its rate is
set before each update from a schedule (`seqtk.optim.schedules`), of which `lr` is the peak. Except for the settings and
the rate, an update depends only on the tensors under `state[parameter]`, which a checkpoint stores.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter

from seqtk.config.fields import setting
from seqtk.config.registry import Registry
from seqtk.utils.errors import UserError

FUSED_DEVICES = ("cpu", "cuda")
"""Where torch has kernels that update all parameters in one pass (on a CPU: 3 to 7 times as fast)."""
DECAY_HELP = "What weight_decay applies to. matrices: not to biases, norms and gains."
WEIGHT_DECAY_HELP = "Each update subtracts lr × weight_decay × the weight from the weight."


@dataclass(frozen=True)
class OptimizerConfig:
    """The settings of every optimizer."""

    lr: float = setting(5e-4, above=0, help="The learning rate at the peak of the schedule.")
    weight_decay: float = setting(0.0, at_least=0, help=WEIGHT_DECAY_HELP)
    decay: Literal["all", "matrices"] = setting("all", help=DECAY_HELP)


optimizers: Registry[torch.optim.Optimizer] = Registry("optimizer", OptimizerConfig)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group to `lr`, multiplied by the group's `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether `step` does nothing when `optimizer.found_inf` is 1, torch's protocol for loss scaling.

    An update can then be skipped without synchronizing with the host. Fused kernels support this.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def trainable_parameters(model: nn.Module) -> list[Parameter]:
    """Returns the parameters that require a gradient, in the model's order."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("There is nothing to train: no parameter of the model requires a gradient.")
    return parameters


def parameter_groups(config: OptimizerConfig, parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    """Returns the parameters in groups, each with its weight decay.

    The groups do not depend on the amount of weight decay, so a run may resume with another.
    """
    parameters = list(parameters)
    decayed = [p for p in parameters if config.decay == "all" or p.ndim >= 2]
    others = [p for p in parameters if config.decay == "matrices" and p.ndim < 2]
    both = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def can_fuse(parameters: Iterable[Parameter]) -> bool:
    """Returns whether torch's fused kernels accept all of the parameters."""
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)


def as_user_error(refusal: ValueError) -> UserError:
    """Returns the error for settings that torch refuses."""
    return UserError(f"optimizer: torch does not accept these settings: {refusal}.")
