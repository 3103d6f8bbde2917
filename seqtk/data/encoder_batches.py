"""Batches for models with only an encoder: texts or pairs of texts with a class, and texts with masked tokens.

B batch, S length, R rows of the encoder's input.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from seqtk.data.batch import Batch
from seqtk.data.static_shapes import Shape
from seqtk.data.vocabulary import PAD


@dataclass(frozen=True)
class ClassBatch(Batch):
    """Texts with classes, padded with PAD on the right."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0}

    source_BS: Tensor
    target_B: Tensor
    """The class of each row, from 0."""
    padded: bool = True
    """True if a row may have padding. False: layers and heads run without a padding mask."""

    @property
    def target(self) -> Tensor:
        return self.target_B

    @property
    def targets(self) -> float:
        if torch.compiler.is_compiling():  # a Python number would become a constant of the graph
            return (self.target_B >= 0).sum()  # type: ignore[return-value]
        return len(self.target_B) - self.fillers if self.weight else 0

    @property
    def texts(self) -> Tensor:
        """The inputs of the encoder, texts_RS."""
        return self.source_BS

    @property
    def pad(self) -> Tensor | None:
        return self.texts == PAD if self.padded else None

    def filled(self, shape: Shape) -> Self:
        """See `Batch.filled`. The result has no padding mask if rows of `shape` never have padding."""
        is_longer = self.source_BS.shape[1] < shape.lengths[0]
        return dataclasses.replace(super().filled(shape), padded=self.padded or is_longer or not shape.exact)


@dataclass(frozen=True, kw_only=True)
class PairBatch(ClassBatch):
    """Pairs of texts with a class for each pair, all padded to the same length."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0, "second_BS": 1}

    second_BS: Tensor

    def filled(self, shape: Shape) -> Self:
        return super().filled(dataclasses.replace(shape, lengths=(max(shape.lengths),) * 2))

    @property
    def texts(self) -> Tensor:
        """The inputs of the encoder, texts_RS with R = 2 B: the first texts of all pairs, then the second texts."""
        return torch.cat([self.source_BS, self.second_BS])


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """Texts in which some tokens are masked or replaced, padded with PAD on the right."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0, "target_BS": 0}

    source_BS: Tensor
    target_BS: Tensor
    """The original tokens at predicted positions, and PAD at all other positions."""

    @property
    def target(self) -> Tensor:
        return self.target_BS

    @property
    def texts(self) -> Tensor:
        """The inputs of the encoder, texts_RS."""
        return self.source_BS

    @property
    def pad(self) -> Tensor:
        return self.source_BS == PAD
