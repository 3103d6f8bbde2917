"""A layer with a matrix and a vector, and fixed gradients for it."""

from collections.abc import Iterator

import torch
from torch import nn

from seqtk.optim import OptimizerConfig, optimizers

STEPS = 5


def layer(dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Returns the same layer in each call."""
    torch.manual_seed(1)
    return nn.Linear(3, 2, dtype=dtype)


def gradients(shape: torch.Size) -> Iterator[torch.Tensor]:
    """Returns the gradients of each update, the same in each call."""
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS))


def train(module: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    """Makes an update with each of the gradients."""
    for weight, bias in zip(gradients(module.weight.shape), gradients(module.bias.shape), strict=True):
        module.weight.grad, module.bias.grad = weight.to(module.weight.dtype), bias.to(module.bias.dtype)
        optimizer.step()


def trained_with(config: OptimizerConfig) -> nn.Linear:
    """The layer after all updates."""
    module = layer()
    train(module, optimizers.build(config, module))
    return module
