"""The classifier: padding has no effect and every encoder layer learns; causal models, numeric input, image stems."""

import dataclasses
import math
from functools import partial
from typing import get_args

import pytest
import torch
from torch.nn import functional

from seqtk.attention import Role, attentions
from seqtk.config.schema import from_dict
from seqtk.criterions import criterions
from seqtk.criterions.cross_entropy import CrossEntropyConfig
from seqtk.data.encoder_batches import ClassBatch
from seqtk.data.vocabulary import PAD
from seqtk.models import build_model
from seqtk.models.classifier import TransformerClassifier, TransformerClassifierConfig
from seqtk.modules.pooled_head import Pool, PooledHead
from seqtk.modules.stem import ConvolutionalStem
from seqtk.utils.errors import UserError

SMALL = {"dim": 16, "ffn_dim": 16, "heads": 2, "encoder": {"layers": 2}}


def model(pool: Pool = "mean", **settings: object) -> TransformerClassifier:
    torch.manual_seed(1)
    config = from_dict(TransformerClassifierConfig, {**SMALL, **settings})
    built = build_model(config, ClassBatch, vocabulary=20, head=partial(PooledHead, classes=3, pool=pool))
    assert isinstance(built, TransformerClassifier)
    return built.eval()


def batch(padding: int = 0) -> ClassBatch:
    source_BS = torch.randint(4, 20, (3, 6), generator=torch.Generator().manual_seed(1))
    return ClassBatch(torch.arange(3), 3, functional.pad(source_BS, (0, padding), value=PAD), torch.tensor([1, 0, 2]))


@pytest.mark.parametrize("encoder", [{}, {"stem_layers": 1}, {"stem_layers": 1, "stem_width": 3}, {"memory_tokens": 2}])
@pytest.mark.parametrize("pool", get_args(Pool))
def test_loss_does_not_depend_on_padding(pool: Pool, encoder: dict[str, int]) -> None:
    classifier, criterion = model(pool, encoder={"layers": 2, **encoder}), criterions.build(CrossEntropyConfig())
    alone, padded = (criterion(classifier, batch(padding)).total for padding in (0, 3))
    torch.testing.assert_close(alone, padded)


def test_mask_of_a_batch_without_padding_has_no_effect() -> None:
    classifier = model()
    masked, plain = (classifier(dataclasses.replace(batch(), padded=padded))[0] for padded in (True, False))
    torch.testing.assert_close(masked, plain)


def test_class_vector_is_prepended_and_trained() -> None:
    classifier = model("cls")
    features, _ = classifier(batch())
    assert features.shape == (3, 7, 16)
    criterions.build(CrossEntropyConfig())(classifier, batch()).total.backward()
    assert classifier.class_D is not None
    assert classifier.class_D.grad is not None
    assert classifier.class_D.grad.abs().max() > 0


def test_loss_statistics_include_correct_predictions() -> None:
    classifier, criterion = model(), criterions.build(CrossEntropyConfig())
    loss = criterion(classifier, batch())
    assert tuple(loss.stats) == criterion.stats_of(classifier) == ("loss", "nll", "correct")
    assert loss.stats["correct"][1] == 3


class TestCausal:
    def test_stem_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"model\.encoder\.stem_layers=0"):
            model("last", causal=True, encoder={"stem_layers": 1})

    def test_features_do_not_depend_on_later_tokens(self) -> None:
        classifier, first = model("last", causal=True), batch()
        changed = first.source_BS.clone()
        changed[:, 4:] = 5
        before, after = (classifier(dataclasses.replace(first, source_BS=ids))[0] for ids in (first.source_BS, changed))
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert (before[:, 4:] - after[:, 4:]).abs().max() > 0.01

    def test_loss_of_causal_model_does_not_depend_on_padding(self) -> None:
        classifier, criterion = model("last", causal=True), criterions.build(CrossEntropyConfig())
        alone, padded = (criterion(classifier, batch(padding)).total for padding in (0, 3))
        torch.testing.assert_close(alone, padded)

    def test_causal_only_layers_require_model_causal(self) -> None:
        with pytest.raises(UserError, match=r"model\.causal=true"):
            model(attention="transformer_xl")
        criterions.build(CrossEntropyConfig())(model("last", attention="transformer_xl", causal=True), batch())

    def test_causal_model_with_class_vector_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"task\.pool=cls"):
            model("cls", causal=True)


class TestValues:
    VALUES = (math.nan,) * 4 + tuple(range(16))

    def built(self, **settings: object) -> TransformerClassifier:
        torch.manual_seed(1)
        config = from_dict(TransformerClassifierConfig, {**SMALL, "input": "values", **settings})
        head = partial(PooledHead, classes=3)
        classifier = build_model(config, ClassBatch, vocabulary=20, head=head, values=self.VALUES)
        assert isinstance(classifier, TransformerClassifier)
        return classifier.eval()

    def test_input_is_linear_in_the_value(self) -> None:
        x_BTD = self.built(value_mean=3.0, value_std=2.0).embedding.vectors(torch.tensor([[4, 7, 9, 1]]))
        zero, three, five, special = x_BTD[0]
        torch.testing.assert_close(five - three, (three - zero) * 2 / 3)
        torch.testing.assert_close(special, three)  # a special symbol has the mean value

    def test_large_values_are_distinct_after_layer_norm(self) -> None:
        x_BTD = self.built(value_mean=0.0, value_std=5.0, positions="none").embedding.vectors(torch.tensor([[9, 19]]))
        five, fifteen = torch.nn.functional.layer_norm(x_BTD, x_BTD.shape[-1:])[0]
        assert torch.cosine_similarity(five, fifteen, dim=0) < 0.98

    def test_value_mean_and_value_std_normalize_the_values(self) -> None:
        one = self.built(value_mean=0.0, value_std=1.0)
        other = self.built(value_mean=7.5, value_std=7.5)
        torch.testing.assert_close(
            other.embedding.tokens.value_V[4:],
            (torch.arange(16) - 7.5) / 7.5,  # type: ignore[union-attr,index]
        )
        assert one(batch())[0].shape == other(batch())[0].shape

    def test_numeric_input_requires_a_task_with_values(self) -> None:
        with pytest.raises(UserError, match=r"model\.input=values"):
            model(input="values")


class TestImageStem:
    def test_image_stem_equals_a_2d_convolution(self) -> None:
        stem = ConvolutionalStem(8, layers=1, kernel_size=3, width=4)
        x_BTD = torch.randn(2, 12, 8)
        image_BDHW = stem.norms[0](x_BTD).transpose(1, 2).reshape(2, 8, 3, 4)
        wanted = x_BTD + functional.gelu(stem.convolutions[0](image_BDHW)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(stem(x_BTD, pad_BT=None), wanted)

    def test_incomplete_image_rows_are_padded(self) -> None:
        stem = ConvolutionalStem(8, layers=2, kernel_size=3, width=4)
        x_BTD = torch.randn(2, 10, 8)
        pad_BT = torch.arange(12).expand(2, 12) >= 10
        whole = stem(functional.pad(x_BTD, (0, 0, 0, 2)), pad_BT=pad_BT)
        torch.testing.assert_close(stem(x_BTD, pad_BT=None), whole[:, :10])


ENCODERS = [name for name in attentions if Role.ENCODER in attentions.class_of(attentions.config_type(name)).roles]


@pytest.mark.parametrize("attention", ENCODERS)
def test_logits_of_every_layer_do_not_depend_on_padding(attention: str) -> None:
    classifier = model(attention=attention)
    alone, padded = (batch(padding) for padding in (0, 3))
    one, other = (classifier.head.logits(classifier(each)[0], pad_BT=each.pad) for each in (alone, padded))  # type: ignore[operator]
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ENCODERS)
def test_every_attention_layer_reduces_the_loss(attention: str) -> None:
    classifier, criterion = model(attention=attention).train(), criterions.build(CrossEntropyConfig())
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        loss = criterion(classifier, batch()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
