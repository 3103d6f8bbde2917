"""SGD, compared with torch, and NAG, compared with fairseq."""

import pytest
import torch

from seqtk.optim import optimizers, set_rate
from seqtk.optim.sgd import NAGConfig, SGDConfig
from tests.unit.optim.helpers import gradients, layer, train

RATES = [1e-7, 0.3, 1.0, 0.7, 0.05]
"""Learning rates that increase and then decrease."""


def test_sgd_equals_torch() -> None:
    module, reference = layer(), layer()
    config = SGDConfig(lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1)
    train(module, optimizers.build(config, module))
    train(
        reference,
        torch.optim.SGD(reference.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1, fused=False),
    )
    torch.testing.assert_close(module.weight, reference.weight, rtol=1e-13, atol=0)


def fairseq_nag(value: torch.Tensor, *, momentum: float, weight_decay: float) -> torch.Tensor:
    """Returns the weight after updates by fairseq's `nag`, whose momentum buffer includes the learning rate."""
    step, before = torch.zeros_like(value), RATES[0]
    for rate, gradient in zip(RATES, gradients(value.shape), strict=True):
        correction = rate / before
        value = value * (1 - rate * weight_decay)
        value = value + momentum**2 * correction * step - (1 + momentum) * rate * gradient
        step = momentum * correction * step - rate * gradient
        before = rate
    return value


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("momentum", [0.99, 0.5])
def test_nag_equals_fairseq(momentum: float, weight_decay: float) -> None:
    module = layer()
    expected = [fairseq_nag(p.detach(), momentum=momentum, weight_decay=weight_decay) for p in module.parameters()]
    optimizer = optimizers.build(NAGConfig(momentum=momentum, weight_decay=weight_decay), module)
    for rate, weight, bias in zip(RATES, gradients(module.weight.shape), gradients(module.bias.shape), strict=True):
        module.weight.grad, module.bias.grad = weight, bias
        set_rate(optimizer, rate)
        optimizer.step()
    for parameter, value in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-14)
