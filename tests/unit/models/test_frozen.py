"""Freezing weights does not change the gradients of other weights, with every attention layer."""

from typing import Any

import pytest
import torch

from seqtk.attention import Role, attentions
from seqtk.config import schema
from seqtk.criterions import CriterionConfig, criterions
from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.models import Model, ModelConfig, build_model
from seqtk.optim import freeze

SIZES: dict[str, Any] = {"dim": 8, "ffn_dim": 16, "heads": 2, "dropout": 0.0}


def gradients(model: Model, batch: Any, patterns: list[str]) -> dict[str, torch.Tensor]:
    """Returns the gradients of the weights that are not frozen. Each call uses the same random numbers."""
    model.train().zero_grad()
    model.requires_grad_(True)
    freeze(model, patterns)
    torch.manual_seed(3)
    criterions.build(schema.from_dict(CriterionConfig, {"kind": "cross_entropy"}))(model, batch).total.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_other_gradients_do_not_change(model: Model, batch: Any, stack: str) -> None:
    """Checks that gradients of other weights do not change if embeddings and weights of attention are frozen."""
    whole = gradients(model, batch, [])
    layer = f"{stack}.blocks.0.self_attention"
    parts = sorted({name.split(".")[4] for name, _ in model.named_parameters() if name.startswith(layer)})
    below = [name for name in ("embedding", "source_embedding", "target_embedding") if hasattr(model, name)]
    of_layer = [layer] if parts else []  # fnet has no weights
    for patterns in (below, [*below, *of_layer], *([*below, f"{layer}.{part}"] for part in parts)):
        found = gradients(model, batch, patterns)
        assert found.keys() < whole.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, whole[name], atol=1e-6, rtol=1e-5, msg=f"{name} with {patterns} frozen"
            )


def kinds(role: Role) -> list[str]:
    return [kind for kind in attentions if role in attentions.class_of(attentions.config_type(kind)).roles]


@pytest.mark.parametrize("kind", kinds(Role.ENCODER))
def test_freezing_encoder_layers_keeps_other_gradients(kind: str) -> None:
    tree = {**SIZES, "kind": "transformer", "encoder": {"layers": 1, "self_attention": kind}, "decoder": {"layers": 1}}
    torch.manual_seed(1)
    config = schema.from_dict(ModelConfig, tree)
    model = build_model(config, TranslationBatch, source_vocabulary=12, target_vocabulary=12)
    tokens_BT = torch.randint(4, 12, (3, 2, 9))
    batch = TranslationBatch(torch.arange(2), 18, *tokens_BT)
    assert_other_gradients_do_not_change(model, batch, "encoder")


@pytest.mark.parametrize("kind", kinds(Role.CAUSAL))
def test_freezing_decoder_layers_keeps_other_gradients(kind: str) -> None:
    tree = {**SIZES, "kind": "transformer_lm", "layers": 1, "attention": kind, "positions": "none"}
    torch.manual_seed(1)
    model = build_model(schema.from_dict(ModelConfig, tree), LanguageBatch, vocabulary=12)
    previous_BT, target_BT = torch.randint(4, 12, (2, 2, 9))
    assert_other_gradients_do_not_change(model, LanguageBatch(torch.arange(2), 18, previous_BT, target_BT), "decoder")
