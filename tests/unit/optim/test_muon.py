"""Muon: its update in closed form, the weights it updates, and the learning rates of Muon and AdamW."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seqtk.config.schema import from_dict
from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.models.base import Model, build_model
from seqtk.models.language_model import TransformerLMConfig
from seqtk.models.transformer import TransformerConfig
from seqtk.modules.embedding import Embedding
from seqtk.modules.head import Head
from seqtk.optim import optimizers, set_rate
from seqtk.optim.muon import MuonConfig, hidden_matrices
from tests.unit.optim.helpers import gradients, layer, train

SMALL = {"dim": 16, "ffn_dim": 24, "heads": 2}


def translator(**settings: object) -> Model:
    config = from_dict(TransformerConfig, {**SMALL, "encoder": {"layers": 1}, "decoder": {"layers": 1}, **settings})
    return build_model(config, TranslationBatch, source_vocabulary=20, target_vocabulary=20)


def language_model(**settings: object) -> Model:
    return build_model(from_dict(TransformerLMConfig, {**SMALL, "layers": 2, **settings}), LanguageBatch, vocabulary=20)


MODELS: dict[str, Callable[[], Model]] = {
    "translator": translator,
    "untied": lambda: translator(share_embeddings="none", positions="learned"),
    "language model": language_model,
    "untied language model": lambda: language_model(tie_embeddings=False, activation="swiglu"),
    "random synthesizer": lambda: language_model(attention={"kind": "synthesizer_random", "max_length": 8}),
    "dense synthesizer": lambda: language_model(attention={"kind": "synthesizer_dense", "max_length": 8}),
}


def test_muon_and_adamw_parts_equal_torch() -> None:
    module, reference = layer(torch.float32), layer(torch.float32)
    train(module, optimizers.build(MuonConfig(lr=0.02, adamw_lr=0.003, adjust_lr_fn="original"), module))
    gradient = zip(gradients(module.weight.shape), gradients(module.bias.shape), strict=True)
    muon = torch.optim.Muon([reference.weight], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    adamw = torch.optim.AdamW([reference.bias], lr=0.003, betas=(0.9, 0.98), weight_decay=0.0)
    for weight, bias in gradient:
        reference.weight.grad, reference.bias.grad = weight.float(), bias.float()
        muon.step()
        adamw.step()
    assert torch.equal(module.weight, reference.weight)
    torch.testing.assert_close(module.bias, reference.bias)


def orthogonalized(value: Tensor) -> Tensor:
    """Divides the singular values by their norm, then replaces x by a x + b x³ + c x⁵ five times (Jordan 2024)."""
    u, s, v = torch.linalg.svd(value, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_update_equals_its_closed_form(shape: tuple[int, int], adjust: str) -> None:
    rows, columns = shape
    module = nn.Linear(columns, rows, bias=False, dtype=torch.float64)
    config = from_dict(MuonConfig, {"lr": 0.1, "adjust_lr_fn": adjust})
    value, mean = module.weight.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    scale = 0.2 * math.sqrt(max(shape)) if adjust == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
    optimizer = optimizers.build(config, module)
    for gradient in gradients(module.weight.shape):
        mean = 0.95 * mean + 0.05 * gradient
        value = value - 0.1 * 0.1 * value - 0.1 * scale * orthogonalized(0.05 * gradient + 0.95 * mean)
        module.weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(module.weight.detach(), value, rtol=0, atol=0.02 * 5 * 0.1 * scale)  # bfloat16, 5 steps


@pytest.mark.parametrize("name", MODELS)
def test_muon_updates_hidden_matrices(name: str) -> None:
    model = MODELS[name]()
    chosen = hidden_matrices(model)
    tables = [module for module in model.modules() if isinstance(module, Embedding | Head | nn.Embedding)]
    assert tables
    assert not chosen & {id(parameter) for module in tables for parameter in module.parameters()}
    maps = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    assert chosen == maps
    assert all(parameter.ndim == 2 for parameter in model.parameters() if id(parameter) in chosen)
    assert {id(p) for n, p in model.named_parameters() if "feed_forward" in n and n.endswith("weight")} <= chosen


def test_adamw_updates_embeddings_and_heads() -> None:
    model = nn.ModuleDict({"embedding": nn.Sequential(nn.Linear(2, 2)), "head": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    assert hidden_matrices(model) == {id(model["a"].weight)}
    model["head"].weight = model["a"].weight
    assert hidden_matrices(model) == set()


def test_each_parameter_is_in_one_group() -> None:
    model = language_model(attention={"kind": "synthesizer_mixture", "max_length": 8})
    optimizer = optimizers.build(MuonConfig(), model)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))


def test_rates_of_muon_and_adamw_follow_the_schedule() -> None:
    optimizer = optimizers.build(MuonConfig(lr=0.02, adamw_lr=0.0003), layer())
    for factor in (0.0, 0.25, 1.0):
        set_rate(optimizer, factor * 0.02)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor * 0.02, factor * 0.0003])
    equal = optimizers.build(MuonConfig(lr=0.02), layer())
    assert [group["lr"] for group in equal.param_groups] == [0.02, 0.02]


@pytest.mark.parametrize("module", [nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)])
def test_model_may_have_weights_for_muon_or_adamw_only(module: nn.Module) -> None:
    optimizer = optimizers.build(MuonConfig(lr=0.1), module)
    weight = next(module.parameters())
    before, weight.grad = weight.detach().clone(), torch.ones_like(weight)
    optimizer.step()
    assert not torch.equal(weight, before)
