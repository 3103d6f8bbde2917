"""Tiny models of every kind with every attention layer, for tests that compile their training steps.

`tests/laws/test_graphs.py` and `tools/graph_breaks.py` use this module.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seqtk.attention import Role, attentions
from seqtk.config.schema import from_dict
from seqtk.criterions.cross_entropy import CrossEntropy, CrossEntropyConfig
from seqtk.data.batch import Batch, LanguageBatch, TranslationBatch
from seqtk.data.encoder_batches import ClassBatch, MaskedBatch
from seqtk.data.vocabulary import PAD
from seqtk.models import models
from seqtk.modules.pooled_head import PooledHead
from seqtk.training.parallel import TrainStep

VOCABULARY, CLASSES = 40, 3
SIZES = {"dim": 16, "ffn_dim": 32, "heads": 2}
LAYER = {"heads": 2, "max_length": 96, "dropout": 0.2}
"""Settings for every layer that has settings of these names."""
ONE = {"layers": 1}
ADAPTIVE = {"cutoffs": (10, 20), "input_factor": 2.0, "softmax_factor": 2.0}


@dataclass(frozen=True)
class Case:
    """A model with a given attention layer."""

    model: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    detail: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, [self.model, self.kind, self.detail]))

    def step(self, *, dropout: float) -> TrainStep:
        """Returns the train step of the model, with the same weights in each call."""
        config = from_dict(models.config_type(self.model), {**SIZES, "dropout": dropout, **self.settings})
        sizes: dict[str, Any] = {"vocabulary": VOCABULARY}
        if self.model == "transformer":
            sizes = {"source_vocabulary": VOCABULARY, "target_vocabulary": VOCABULARY}
        if self.model == "transformer_classifier":
            sizes["head"] = lambda dim: PooledHead(dim, CLASSES, pool=self.detail or "mean", dropout=dropout)
        torch.manual_seed(0)
        return TrainStep(models.build(config, **sizes), CrossEntropy(CrossEntropyConfig())).train()

    def batch(self, lengths: Sequence[int] = (70, 41, 3)) -> Batch:
        """Returns a batch for the model whose rows have the given lengths."""
        generator = torch.Generator().manual_seed(1)
        x, y = (_rows(order, generator) for order in (lengths, lengths[::-1]))
        ids, count = torch.arange(len(lengths)), float(sum(lengths))
        reads = models.class_of(models.config_type(self.model)).reads
        if reads is TranslationBatch:
            return TranslationBatch(ids, count, source_BS=x, previous_BT=y, target_BT=y)
        if reads is LanguageBatch:
            return LanguageBatch(ids, count, previous_BT=x, target_BT=x)
        if reads is MaskedBatch:
            return MaskedBatch(ids, count, source_BS=x, target_BS=x)
        return ClassBatch(ids, float(len(lengths)), source_BS=x, target_B=ids % CLASSES)


def _rows(lengths: Sequence[int], generator: torch.Generator) -> Tensor:
    rows = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randint(4, VOCABULARY, (length,), generator=generator)
    return rows


def cases() -> Iterator[Case]:
    """Yields every model with every layer, in all roles of the layer that the model has."""
    for kind in attentions:
        roles, layer = attentions.class_of(attentions.config_type(kind)).roles, {"kind": kind, **layer_settings(kind)}
        encoder = {**ONE, "self_attention": layer} if Role.ENCODER in roles else ONE
        decoder = {
            **ONE,
            **({"self_attention": layer} if Role.CAUSAL in roles else {}),
            **({"cross_attention": layer} if Role.CROSS in roles else {}),
        }
        yield Case("transformer", kind, {"encoder": encoder, "decoder": decoder})
        if Role.CAUSAL in roles:
            yield Case("transformer_lm", kind, {**ONE, "attention": layer})
            yield Case(
                "recurrent_memory_lm",
                kind,
                {**ONE, "attention": layer, "segment_length": 40, "memory_tokens": 2, "max_length": 96},
            )
        if Role.ENCODER in roles:
            yield Case("transformer_classifier", kind, {"encoder": encoder})
            yield Case("transformer_masked_lm", kind, {"encoder": encoder})
    yield from MORE


def layer_settings(kind: str) -> dict[str, Any]:
    """Returns the settings of a layer, including dropout if the layer has this setting."""
    known = {each.name for each in dataclasses.fields(attentions.config_type(kind))}
    return {key: value for key, value in LAYER.items() if key in known}


MORE = [
    Case(
        "transformer_lm", "softmax", {**ONE, "adaptive": ADAPTIVE, "positions": "learned", "max_length": 96}, "adaptive"
    ),
    Case("transformer_lm", "softmax", {"layers": 2, "layer_drop": 0.5, "attention": {"dropout": 0.0}}, "layer_drop"),
    *(Case("transformer_classifier", "softmax", {"encoder": ONE}, pool) for pool in ("max", "cls", "last")),
]
"""Models with other heads, and with parts whose computation depends on their input."""


def outcome(step: TrainStep, compute: Callable[..., Any], batch: Batch) -> list[Tensor | None]:
    """Returns the loss, the statistics and the gradients of a training step."""
    step.zero_grad()
    torch.manual_seed(3)
    total, stats, _ = compute(batch, None)
    total.backward()
    return [total.detach(), *(x for pair in stats.values() for x in pair), *(p.grad for p in step.parameters())]


def with_weight_tensor(batch: Batch) -> Batch:
    """Returns the batch with its weight as a tensor, as compiled code requires."""
    weight: Any = torch.tensor(batch.weight, dtype=torch.float64)
    return dataclasses.replace(batch, weight=weight)
