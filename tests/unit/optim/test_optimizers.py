"""Optimizers: the update against its formula, what decays, fused kernels, what a checkpoint holds."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from seqtk.errors import UserError
from seqtk.optim import OptimizerConfig, optimizers
from seqtk.optim.optimizers import AdamConfig, AdamWConfig, SGDConfig

ALL = [optimizers.config_type(name) for name in optimizers]


def layer(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 2, dtype=dtype)


def gradients(shape: torch.Size, steps: int = 5) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps))


def train(module: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    for weight, bias in zip(gradients(module.weight.shape), gradients(module.bias.shape), strict=True):
        module.weight.grad, module.bias.grad = weight.to(module.weight.dtype), bias.to(module.bias.dtype)
        optimizer.step()


def test_the_optimizers_there_are() -> None:
    assert list(optimizers) == ["adam", "adamw", "sgd"]


def test_adam_is_torch_adam_where_nothing_decays() -> None:
    module, reference = layer(), layer()
    train(module, optimizers.build(AdamConfig(), module.named_parameters()))
    train(reference, torch.optim.Adam(reference.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-8, fused=False))
    torch.testing.assert_close(module.weight, reference.weight, rtol=1e-13, atol=0)
    torch.testing.assert_close(module.bias, reference.bias, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "config", [AdamConfig(lr=0.1, weight_decay=0.3), AdamWConfig(lr=0.1), AdamWConfig(decay="all")]
)
def test_adam_follows_its_formula_with_decoupled_decay(config: AdamConfig) -> None:
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
    train(module, optimizers.build(config, module.named_parameters()))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-15)


def test_fairseq_adam_differs_only_by_where_eps_stands() -> None:
    """fairseq: w ← w − lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + eps)."""
    config, module = AdamConfig(lr=0.1), layer()
    value = module.weight.detach().clone()
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    for step, gradient in enumerate(gradients(value.shape), start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        value -= config.lr * math.sqrt(1 - 0.98**step) / (1 - 0.9**step) * first / (second.sqrt() + config.eps)
    train(module, optimizers.build(config, module.named_parameters()))
    torch.testing.assert_close(module.weight.detach(), value, rtol=1e-6, atol=0)


def test_sgd_is_torch_sgd() -> None:
    module, reference = layer(), layer()
    config = SGDConfig(lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1)
    train(module, optimizers.build(config, module.named_parameters()))
    train(
        reference,
        torch.optim.SGD(reference.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1, fused=False),
    )
    torch.testing.assert_close(module.weight, reference.weight, rtol=1e-13, atol=0)


@pytest.mark.parametrize("config_type", ALL)
@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_decay_reaches_all_or_matrices_only(config_type: type[OptimizerConfig], decay: str) -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    config = config_type(weight_decay=0.5, decay=decay)  # type: ignore[arg-type]
    optimizer = optimizers.build(config, module.named_parameters())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == 5
    for parameter in module.parameters():
        assert decays[id(parameter)] == (0.5 if decay == "all" or parameter.ndim == 2 else 0.0)


def test_groups_do_not_depend_on_the_amount_of_decay() -> None:
    groups = [
        [len(group["params"]) for group in optimizers.build(config, layer().named_parameters()).param_groups]
        for config in (AdamWConfig(weight_decay=0.0), AdamWConfig(weight_decay=0.1))
    ]
    assert groups == [[1, 1], [1, 1]]


@pytest.mark.parametrize("config_type", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fused_kernels_are_used_and_equal_the_plain_ones(
    config_type: type[OptimizerConfig], dtype: torch.dtype
) -> None:
    module, plain = layer(dtype), layer(dtype)
    optimizer = optimizers.build(config_type(lr=0.1), module.named_parameters())
    assert all(group["fused"] for group in optimizer.param_groups)
    train(module, optimizer)
    slow = optimizers.build(config_type(lr=0.1), plain.named_parameters())
    for group in slow.param_groups:
        group["fused"] = False
    train(plain, slow)
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(module.weight, plain.weight, rtol=tolerance, atol=tolerance)


def test_where_there_is_no_fused_kernel_there_is_an_optimizer_all_the_same() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    optimizer = optimizers.build(AdamConfig(), module.named_parameters())
    assert not any(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("config_type", ALL)
def test_training_goes_on_the_same_from_the_state(config_type: type[OptimizerConfig]) -> None:
    config = config_type(lr=0.1)
    module, other = layer(), layer()
    optimizer = optimizers.build(config, module.named_parameters())
    train(module, optimizer)
    resumed = optimizers.build(config, other.named_parameters())
    other.load_state_dict(module.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # loading alone would share the tensors
    train(module, optimizer)
    train(other, resumed)
    assert torch.equal(module.weight, other.weight)


def test_frozen_parameters_are_left_out() -> None:
    module = layer()
    module.bias.requires_grad_(False)
    optimizer = optimizers.build(AdamConfig(), module.named_parameters())
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [module.weight.shape]
    module.weight.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        optimizers.build(AdamConfig(), module.named_parameters())


@pytest.mark.parametrize(
    "config", [AdamConfig(lr=-1.0), AdamConfig(betas=(0.9, 1.0)), AdamWConfig(eps=-1.0), SGDConfig(nesterov=True)]
)
def test_what_torch_refuses_is_told_in_two_lines(config: OptimizerConfig) -> None:
    with pytest.raises(UserError) as caught:
        optimizers.build(config, layer().named_parameters())
    assert str(caught.value).count("\n") == 1
    assert "optimizer" in str(caught.value)
