"""Tests of all optimizers. The update rule of each optimizer is tested in its own file."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from seqtk.optim import OptimizerConfig, can_skip, optimizers, set_rate
from seqtk.optim.adafactor import AdafactorConfig
from seqtk.optim.adam import AdamConfig, AdamWConfig
from seqtk.optim.muon import MuonConfig
from seqtk.optim.sgd import NAGConfig, SGDConfig
from seqtk.utils.errors import UserError
from tests.unit.optim.helpers import layer, train

ALL = [optimizers.config_type(name) for name in optimizers]


def test_every_optimizer_is_registered() -> None:
    assert list(optimizers) == ["adafactor", "adam", "adamw", "muon", "nag", "sgd"]


@pytest.mark.parametrize("config_type", ALL)
@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_decay_applies_to_all_or_to_matrices(config_type: type[OptimizerConfig], decay: str) -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    before = [parameter.detach().fill_(1.0).clone() for parameter in module.parameters()]
    config = config_type(lr=0.1, weight_decay=0.5, decay=decay)  # type: ignore[arg-type]
    optimizer = optimizers.build(config, module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_rate(optimizer, 0.2)
    optimizer.step()
    for parameter, value in zip(module.parameters(), before, strict=True):
        left = 1 - 0.2 * 0.5 if decay == "all" or parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), left * value)


@pytest.mark.parametrize("config_type", ALL)
def test_weight_without_gradient_is_not_updated(config_type: type[OptimizerConfig]) -> None:
    late, alone = layer(), layer()
    optimizer, lone = (optimizers.build(config_type(weight_decay=0.1), module) for module in (late, alone))
    before = late.weight.detach().clone()
    late.bias.grad = torch.ones_like(late.bias)
    optimizer.step()
    assert torch.equal(late.weight, before)
    late.weight.grad = alone.weight.grad = torch.ones_like(before)
    for module in (optimizer, lone):
        module.step()
    assert not torch.equal(late.weight, before)
    torch.testing.assert_close(late.weight, alone.weight)


def test_parameter_groups_do_not_depend_on_decay() -> None:
    groups = [
        [len(group["params"]) for group in optimizers.build(config, layer()).param_groups]
        for config in (AdamWConfig(weight_decay=0.0), AdamWConfig(weight_decay=0.1))
    ]
    assert groups == [[1, 1], [1, 1]]


@pytest.mark.parametrize("config_type", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fused_kernels_equal_plain_kernels(config_type: type[OptimizerConfig], dtype: torch.dtype) -> None:
    module, plain = layer(dtype), layer(dtype)
    optimizer = optimizers.build(config_type(lr=0.1), module)
    fused = [group["fused"] for group in optimizer.param_groups if "fused" in group]
    assert all(fused)
    assert bool(fused) == (config_type is not AdafactorConfig)  # torch has no fused Adafactor
    train(module, optimizer)
    slow = optimizers.build(config_type(lr=0.1), plain)
    for group in slow.param_groups:
        group["fused"] = False
    train(plain, slow)
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-5
    for parameter, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config_type", ALL)
def test_state_tensors_determine_the_update(config_type: type[OptimizerConfig]) -> None:
    """The saved state determines the next update. The previous learning rate has no effect."""
    module, other = layer(), layer()
    optimizer, resumed = (optimizers.build(config_type(lr=0.1), each) for each in (module, other))
    train(module, optimizer)
    set_rate(optimizer, 0.07)
    train(module, optimizer)
    other.load_state_dict(module.state_dict())
    for parameter, twin in zip(module.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[parameter].items():
            assert isinstance(value, torch.Tensor)
            resumed.state[twin][key] = value.clone()
    for each, its in ((module, optimizer), (other, resumed)):
        set_rate(its, 0.03)
        train(each, its)
    for parameter, twin in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, twin)


@pytest.mark.parametrize("config_type", ALL)
def test_learning_rate_0_changes_no_weight(config_type: type[OptimizerConfig]) -> None:
    """A warm-up may start from 0."""
    module = layer()
    optimizer = optimizers.build(config_type(weight_decay=0.1), module)
    before = copy.deepcopy(module.state_dict())
    set_rate(optimizer, 0.0)
    train(module, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    set_rate(optimizer, 0.1)
    train(module, optimizer)
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert not any(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("config_type", ALL)
def test_zero_gradient_without_decay_changes_no_weight(config_type: type[OptimizerConfig]) -> None:
    """For example, the embedding of a token that is not in the batch has such a gradient."""
    module = layer(torch.float32)
    optimizer = optimizers.build(config_type(weight_decay=0.0), module)
    before = copy.deepcopy(module.state_dict())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_plain_kernel_is_used_if_there_is_no_fused_kernel() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    optimizer = optimizers.build(AdamConfig(), module)
    assert not any(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("config_type", ALL)
def test_training_resumes_from_the_state_dict(config_type: type[OptimizerConfig]) -> None:
    config = config_type(lr=0.1)
    module, other = layer(), layer()
    optimizer = optimizers.build(config, module)
    train(module, optimizer)
    resumed = optimizers.build(config, other)
    other.load_state_dict(module.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # without the copy, both would share the tensors
    train(module, optimizer)
    train(other, resumed)
    assert torch.equal(module.weight, other.weight)


def test_frozen_parameters_are_skipped() -> None:
    module = layer()
    module.bias.requires_grad_(False)
    optimizer = optimizers.build(AdamConfig(), module)
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [module.weight.shape]
    module.weight.requires_grad_(False)
    with pytest.raises(UserError, match="no parameters to train"):
        optimizers.build(AdamConfig(), module)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (AdamConfig(lr=-1.0), "lr=-1.0"),
        (AdamConfig(lr=float("inf")), "lr=inf"),
        (AdamConfig(betas=(0.9, 1.0)), "betas="),
        (AdamWConfig(eps=-1.0), "eps=-1.0"),
        (AdamWConfig(weight_decay=-0.1), "weight_decay=-0.1"),
        (SGDConfig(nesterov=True), "Nesterov"),
        (SGDConfig(momentum=1.0), "momentum=1.0"),
        (NAGConfig(momentum=-0.5), "momentum=-0.5"),
        (AdafactorConfig(lr=0.0), "lr=0.0"),
        (AdafactorConfig(beta2_decay=0.5), "beta2_decay=0.5"),
        (AdafactorConfig(clip_threshold=0.0), "clip_threshold=0.0"),
        (AdafactorConfig(min_scale=-1.0), "min_scale=-1.0"),
        (MuonConfig(momentum=1.5), "momentum=1.5"),
        (MuonConfig(betas=(1.0, 0.9)), "betas="),
        (MuonConfig(adamw_lr=-0.1), "adamw_lr=-0.1"),
    ],
)
def test_invalid_settings_are_refused(config: OptimizerConfig, key: str) -> None:
    with pytest.raises(UserError, match=key) as caught:
        optimizers.build(config, layer())
    assert str(caught.value).startswith("optimizer")


@pytest.mark.parametrize("config_type", [AdamConfig, AdamWConfig, SGDConfig, NAGConfig])
def test_found_inf_makes_fused_kernels_skip_an_update(config_type: type[OptimizerConfig]) -> None:
    """With `found_inf`, neither the weights nor the state change, for any gradient and weight decay."""
    module = layer(torch.float32)
    optimizer = optimizers.build(config_type(weight_decay=0.1), module)
    assert can_skip(optimizer)
    train(module, optimizer)
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()["state"]))
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    module.weight.grad, module.bias.grad = torch.full((2, 3), float("nan")), torch.full((2,), float("inf"))
    optimizer.step()
    after = module.state_dict(), optimizer.state_dict()["state"]
    for one, other in zip(tree_leaves(before), tree_leaves(after), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
