"""Cross-entropy criteria: the loss is a sum over targets, so the losses of two parts of a batch add up."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.criterions import Criterion, Loss, criterions
from seqtk.criterions.cross_entropy import CrossEntropyConfig, LabelSmoothedConfig
from seqtk.data.batch import collate_pairs
from seqtk.data.vocabulary import EOS, PAD
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.models.transformer import Transformer, TransformerConfig
from seqtk.training.parallel import TrainStep

HEADS = (SoftmaxConfig(heads=2),)
CONFIGS = (CrossEntropyConfig(), LabelSmoothedConfig(label_smoothing=0.2))


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = TransformerConfig(
        dim=8,
        ffn_dim=12,
        encoder=EncoderConfig(layers=1, self_attention=HEADS),
        decoder=DecoderConfig(layers=1, self_attention=HEADS, cross_attention=HEADS),
    )
    return Transformer(config, source_vocabulary=13, target_vocabulary=13).double().eval()


def pairs() -> list[tuple[int, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(7)
    lengths = [(3, 5), (9, 2), (4, 4), (1, 7), (6, 1)]
    return [(i, *(np.append(random.integers(4, 13, size), EOS) for size in both)) for i, both in enumerate(lengths)]


def computed(criterion: Criterion, model: Transformer, examples: list) -> tuple[Loss, list[torch.Tensor]]:
    loss = criterion(model, collate_pairs(examples))
    return loss, list(torch.autograd.grad(loss.total, list(model.parameters())))


def test_loss_requires_the_state_of_the_model() -> None:
    with pytest.raises(TypeError, match="state"):
        Loss(total=torch.tensor(1.0), weight=1, stats={})  # type: ignore[call-arg]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_losses_of_two_halves_sum_to_the_loss_of_the_batch(model: Transformer, config: object, cut: int) -> None:
    criterion = criterions.build(config)
    whole, whole_gradients = computed(criterion, model, pairs())
    first, first_gradients = computed(criterion, model, pairs()[:cut])
    second, second_gradients = computed(criterion, model, pairs()[cut:])
    assert whole.weight == first.weight + second.weight == sum(len(target) for _, _, target in pairs())
    torch.testing.assert_close(whole.total, first.total + second.total)
    assert whole.stats.keys() == first.stats.keys() == {"loss", "nll"}
    for name, (value, weight) in whole.stats.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, first.stats[name][0] + second.stats[name][0])
        assert weight == first.stats[name][1] + second.stats[name][1] == whole.weight
    for together, one, other in zip(whole_gradients, first_gradients, second_gradients, strict=True):
        torch.testing.assert_close(together, one + other)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_loss_equals_torch_cross_entropy(model: Transformer, config: object) -> None:
    batch = collate_pairs(pairs())
    loss = criterions.build(config)(model, batch)
    smoothing = getattr(config, "label_smoothing", 0.0) * 13 / 12
    logits_NV = (model(batch)[0] @ model.head.weight.T).flatten(0, 1)
    settings = {"ignore_index": PAD, "reduction": "sum"}
    wanted = functional.cross_entropy(logits_NV, batch.target_BT.flatten(), label_smoothing=smoothing, **settings)
    torch.testing.assert_close(loss.total, wanted)
    torch.testing.assert_close(loss.stats["loss"][0], wanted.detach())
    torch.testing.assert_close(
        loss.stats["nll"][0], functional.cross_entropy(logits_NV, batch.target_BT.flatten(), **settings).detach()
    )


def test_empty_batch_has_zero_gradients(model: Transformer) -> None:
    step = TrainStep(model, criterions.build(LabelSmoothedConfig()))
    total, stats, _ = step(collate_pairs(pairs()).as_empty())
    assert total.item() == 0
    assert {(float(value), float(weight)) for value, weight in stats.values()} == {(0, 0)}
    gradients = torch.autograd.grad(total, list(model.parameters()))
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_configs_are_registered() -> None:
    assert {"cross_entropy", "label_smoothed_cross_entropy"} <= set(criterions)
    assert [field.default for field in dataclasses.fields(LabelSmoothedConfig)] == [0.1]
