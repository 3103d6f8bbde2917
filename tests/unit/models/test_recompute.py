"""Activation checkpointing does not change losses and gradients, and stores fewer activations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.config import schema
from seqtk.criterions import criterions
from seqtk.criterions.cross_entropy import LabelSmoothedConfig
from seqtk.data.batch import Batch, LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import EOS
from seqtk.models import Model, build_model
from seqtk.models.base import ModelConfig
from seqtk.training.parallel import TrainStep

SIZES: dict[str, Any] = {"dim": 16, "ffn_dim": 32, "heads": 2, "dropout": 0.3, "activation_dropout": 0.2}
TRANSLATION = {"kind": "transformer", "encoder": {"layers": 3}, "decoder": {"layers": 3}}
LANGUAGE = {"kind": "transformer_lm", "layers": 3, "layer_drop": 0.3}


def batch_of(kind: type[Batch], length: int = 12) -> Batch:
    random = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(4, 50, (3, length), generator=random)
    target_BT = tokens_BT.roll(-1, 1)
    target_BT[:, -1] = EOS
    ids_B, weight = torch.arange(3), float(tokens_BT.numel())
    if kind is LanguageBatch:
        return LanguageBatch(ids_B=ids_B, weight=weight, previous_BT=tokens_BT, target_BT=target_BT)
    return TranslationBatch(ids_B, weight, source_BS=tokens_BT.flip(1), previous_BT=tokens_BT, target_BT=target_BT)


def trained(tree: dict[str, Any], kind: type[Batch], *, autocast: torch.dtype | None = None) -> tuple[Tensor, Model]:
    """Computes one forward and backward pass from fixed seeds, and returns the loss and the model."""
    torch.manual_seed(1)
    sizes = {"vocabulary": 50} if kind is LanguageBatch else {"source_vocabulary": 50, "target_vocabulary": 50}
    model = build_model(schema.from_dict(ModelConfig, {**SIZES, **tree}), kind, **sizes)
    torch.manual_seed(2)
    step = TrainStep(model, criterions.build(LabelSmoothedConfig()), autocast=autocast)
    total, _, _ = step(batch_of(kind))
    total.backward()
    return total.detach(), model


def assert_equal(tree: dict[str, Any], kind: type[Batch], **options: Any) -> None:
    loss, model = trained(tree, kind, **options)
    for every in ("all", 2):
        again, other = trained({**tree, "recompute_blocks": every}, kind, **options)
        assert torch.equal(loss, again)
        for (name, weight), other_weight in zip(model.named_parameters(), other.parameters(), strict=True):
            assert (weight.grad is None) == (other_weight.grad is None), name
            if weight.grad is not None:
                assert torch.equal(weight.grad, other_weight.grad), name


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tree", [TRANSLATION, LANGUAGE], ids=["translation", "language"])
def test_recompute_with_dropout_gives_equal_gradients(tree: dict[str, Any], autocast: torch.dtype | None) -> None:
    assert_equal(tree, LanguageBatch if tree is LANGUAGE else TranslationBatch, autocast=autocast)


@pytest.mark.parametrize(
    "attention",
    [
        {"kind": "synthesizer_mixture", "parts": ["random", "dot"], "max_length": 16},
        {"kind": "luna"},
        {"kind": "performer"},
        {"kind": "reformer"},
        {"kind": "dynamic_conv"},
        {"kind": "feedforward_kernel"},
    ],
    ids=lambda attention: attention["kind"],
)
def test_recompute_of_each_layer_gives_equal_gradients(attention: dict[str, Any]) -> None:
    assert_equal({**TRANSLATION, "attention": attention}, TranslationBatch)


def test_recompute_with_state_gives_equal_gradients() -> None:
    assert_equal({**LANGUAGE, "positions": "none", "attention": "transformer_xl"}, LanguageBatch)


def test_recompute_stores_fewer_activations() -> None:
    def stored(every: Any) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tree = {**SIZES, **LANGUAGE, "layers": 6, "layer_drop": 0.0, "recompute_blocks": every}
        model = build_model(schema.from_dict(ModelConfig, tree), LanguageBatch, vocabulary=50)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features, _ = model(batch_of(LanguageBatch, length=64))
        assert features.requires_grad
        return sum(size for address, size in sizes.items() if address not in own)

    none, half, every = stored(0), stored(2), stored("all")
    assert every < half < none
    assert every < 0.3 * none
