"""Adafactor, compared with the equations of the paper written with loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from seqtk.optim import optimizers
from seqtk.optim.adafactor import AdafactorConfig

STEPS = 6


class Tensors(nn.Module):
    """A module with a matrix, a vector, and a tensor with one matrix for each head."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in {"matrix": (4, 3), "vector": (5,), "stack": (2, 3, 4)}.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(name, nn.Parameter(value))


def gradients(shape: torch.Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def rms(value: Tensor) -> float:
    return math.sqrt(float((value**2).mean()))


def second_moment(squares: list[Tensor], decay: float) -> Tensor:
    """Returns the running mean of g² + 1e-30 with β = 1 − t^decay. A matrix is factored (section 3 of the paper)."""
    running = torch.zeros_like(squares[0])
    for step, square in enumerate(squares, start=1):
        forget = 1 - step**decay
        running = forget * running + (1 - forget) * (square + 1e-30)
    if running.ndim == 1:
        return running
    product = torch.zeros_like(running)
    for row in range(running.shape[0]):
        for column in range(running.shape[1]):
            product[row, column] = running[row].sum() * running[:, column].sum() / running.sum()
    return product


def expected(value: Tensor, config: AdafactorConfig, scale: float = 1.0) -> Tensor:
    """Returns a weight after all updates of algorithms 4 and 5 (Shazeer and Stern 2018), with decoupled decay.

    lr is the upper bound of the relative step size.
    """
    seen = [scale * gradient for gradient in gradients(value.shape)]
    for step in range(1, STEPS + 1):
        heads = [(each,) for each in range(value.shape[0])] if value.ndim == 3 else [()]
        variance = torch.zeros_like(value)
        for head in heads:
            variance[head] = second_moment([gradient[head] ** 2 for gradient in seen[:step]], config.beta2_decay)
        update = seen[step - 1] / variance.sqrt()
        update = update / max(1.0, rms(update) / config.clip_threshold)
        size = max(config.min_scale, rms(value)) * min(config.lr, 1 / math.sqrt(step))
        value = value - config.lr * config.weight_decay * value - size * update
    return value


@pytest.mark.parametrize(
    "config",
    [
        AdafactorConfig(),
        AdafactorConfig(lr=0.7, beta2_decay=-0.5, weight_decay=0.1),
        AdafactorConfig(clip_threshold=1.2, min_scale=2.0),
    ],
)
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 1.0), (torch.float32, 1.0), (torch.float32, 1e-6)])
def test_adafactor_updates_equal_the_paper(config: AdafactorConfig, dtype: torch.dtype, scale: float) -> None:
    module = Tensors(dtype)
    values = {name: expected(p.detach().double(), config, scale) for name, p in module.named_parameters()}
    optimizer = optimizers.build(config, module)
    for step in range(STEPS):
        for parameter in module.parameters():
            parameter.grad = (scale * gradients(parameter.shape)[step]).to(dtype)
        optimizer.step()
    exact = dtype is torch.float64
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(
            parameter.detach().double(), values[name], rtol=1e-12 if exact else 1e-5, atol=1e-12 if exact else 1e-6
        )


def test_matrix_state_has_one_value_per_row_and_column() -> None:
    module = nn.Linear(300, 200, bias=False)
    optimizer = optimizers.build(AdafactorConfig(), module)
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[module.weight].values()) == 300 + 200 + 1
