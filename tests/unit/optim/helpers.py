"""A linear layer and gradients for tests of optimizers. They are the same in each test."""

from collections.abc import Iterator

import torch
from torch import nn

from seqtk.optim import OptimizerConfig, optimizers

STEPS = 5


def layer(dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Returns a layer with the same weights in each call."""
    torch.manual_seed(1)
    return nn.Linear(3, 2, dtype=dtype)


def gradients(shape: torch.Size) -> Iterator[torch.Tensor]:
    """Returns the gradients of all updates. Each call returns the same gradients."""
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS))


def train(module: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    """Updates the module with each gradient."""
    for weight, bias in zip(gradients(module.weight.shape), gradients(module.bias.shape), strict=True):
        module.weight.grad, module.bias.grad = weight.to(module.weight.dtype), bias.to(module.bias.dtype)
        optimizer.step()


def trained_with(config: OptimizerConfig) -> nn.Linear:
    """Returns the layer after all updates."""
    module = layer()
    train(module, optimizers.build(config, module))
    return module
