"""The classifier: padding does not matter, any encoder layer fits, and a head is chosen by the task."""

from functools import partial
from typing import get_args

import pytest
import torch
from torch.nn import functional

from seqtk.attention import Role, attentions
from seqtk.config.schema import from_dict
from seqtk.criterions import criterions
from seqtk.criterions.cross_entropy import CrossEntropyConfig
from seqtk.data.batch import ClassBatch
from seqtk.data.vocabulary import PAD
from seqtk.models import build_model
from seqtk.models.classifier import TransformerClassifier, TransformerClassifierConfig
from seqtk.modules.pooled_head import Pool, PooledHead

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


@pytest.mark.parametrize("pool", get_args(Pool))
def test_padding_changes_nothing(pool: Pool) -> None:
    classifier, criterion = model(pool), criterions.build(CrossEntropyConfig())
    alone, padded = (criterion(classifier, batch(padding)).total for padding in (0, 3))
    torch.testing.assert_close(alone, padded)


def test_statistics_count_correct_classes() -> None:
    classifier, criterion = model(), criterions.build(CrossEntropyConfig())
    loss = criterion(classifier, batch())
    assert tuple(loss.stats) == criterion.stats_of(classifier) == ("loss", "nll", "correct")
    assert loss.stats["correct"][1] == 3


ENCODERS = [name for name in attentions if Role.ENCODER in attentions.class_of(attentions.config_type(name)).roles]


@pytest.mark.parametrize("attention", ENCODERS)
def test_every_encoder_layer_learns(attention: str) -> None:
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
