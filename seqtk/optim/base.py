"""The registry of optimizers, and their parameter groups and learning rates.

`optimizers.build(config, model)` returns a `torch.optim.Optimizer` of the parameters that require gradients. Before
each update, its learning rate is set from a schedule (`seqtk.optim.schedules`) with the peak `lr`. An optimizer must
keep all its state in tensors under `state[parameter]`, because checkpoints store only these.
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
"""Devices with fused kernels of torch, which update all parameters in one pass (3 to 7 times as fast on a CPU)."""
DECAY_HELP = "Weights to which weight_decay applies. matrices: all except biases and the weights of norms."
WEIGHT_DECAY_HELP = "Weight decay. Each update subtracts lr × weight_decay × weight from the weight."


@dataclass(frozen=True)
class OptimizerConfig:
    """The settings that all optimizers have."""

    lr: float = setting(5e-4, above=0, help="Peak learning rate of the schedule.")
    weight_decay: float = setting(0.0, at_least=0, help=WEIGHT_DECAY_HELP)
    decay: Literal["all", "matrices"] = setting("all", help=DECAY_HELP)


optimizers: Registry[torch.optim.Optimizer] = Registry("optimizer", OptimizerConfig)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group to `lr`, multiplied by the group's `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Returns True if `step` skips the update when `optimizer.found_inf` is 1 (torch's protocol for loss scaling).

    Fused kernels support this. They skip the update on the device, without synchronizing with the host.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def trainable_parameters(model: nn.Module) -> list[Parameter]:
    """Returns the parameters that require gradients, in the model's order. Raises UserError if there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("The model has no parameters to train: none of them requires gradients.")
    return parameters


def parameter_groups(config: OptimizerConfig, parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    """Splits the parameters into a group with weight decay and a group without it. Omits empty groups.

    The groups do not depend on the value of `weight_decay`, so a run can be resumed with a different value.
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
    """Returns True if torch's fused kernels support all parameters."""
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
