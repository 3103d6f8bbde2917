"""Adam, compared with its formula, torch and fairseq."""

import math

import pytest
import torch

from seqtk.optim import optimizers
from seqtk.optim.adam import AdamConfig, AdamWConfig
from tests.unit.optim.helpers import gradients, layer, train


def test_adam_without_decay_equals_torch() -> None:
    module, reference = layer(), layer()
    train(module, optimizers.build(AdamConfig(), module))
    train(reference, torch.optim.Adam(reference.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-8, fused=False))
    torch.testing.assert_close(module.weight, reference.weight, rtol=1e-13, atol=0)
    torch.testing.assert_close(module.bias, reference.bias, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "config", [AdamConfig(lr=0.1, weight_decay=0.3), AdamWConfig(lr=0.1), AdamWConfig(decay="all")]
)
def test_adam_and_adamw_equal_their_formula(config: AdamConfig) -> None:
    module = layer()
    expected = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for name, value in expected.items():
        decay = config.weight_decay if config.decay == "all" or name == "weight" else 0.0
        first, second = torch.zeros_like(value), torch.zeros_like(value)
        (beta1, beta2) = config.betas
        for step, gradient in enumerate(gradients(value.shape), start=1):
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            root = (second / (1 - beta2**step)).sqrt()
            value.sub_(config.lr * decay * value + config.lr * first / (1 - beta1**step) / (root + config.eps))
    train(module, optimizers.build(config, module))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-15)


def test_fairseq_adam_differs_by_eps_only() -> None:
    """The update of fairseq is w ← w − lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + eps)."""
    config, module = AdamConfig(lr=0.1), layer()
    value = module.weight.detach().clone()
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    for step, gradient in enumerate(gradients(value.shape), start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        value -= config.lr * math.sqrt(1 - 0.98**step) / (1 - 0.9**step) * first / (second.sqrt() + config.eps)
    train(module, optimizers.build(config, module))
    torch.testing.assert_close(module.weight.detach(), value, rtol=1e-6, atol=0)
