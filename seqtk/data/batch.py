"""Batches: frozen dataclasses of tensors, with the number of targets that count, known before any model runs.

B batch, S source length, T target length.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from seqtk.data.static_shapes import Shape
from seqtk.data.vocabulary import EOS, PAD, Vocabulary
from seqtk.utils.errors import UserError

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
B = TypeVar("B", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """The base of all batches: the indices of its examples, its weight, and further tensors in subclasses."""

    sides: ClassVar[Mapping[str, int]] = {}
    """The tensors that are padded along their second axis, and the column of `sizes_ND` that their length is in."""

    ids_B: Tensor
    """The number of the example in each row; -1 for filler rows."""
    weight: float
    """What the loss of this batch counts: the number of its targets, or the sum of their weights. Losses are divided by
    it once they are added up over batches."""
    fillers: int = field(default=0, kw_only=True)
    """How many rows at the end only fill the batch up to a static shape; their targets do not count."""

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on `device`; the copy is asynchronous if they are pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of the tensors until `stream` has used them."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    @property
    def target(self) -> Tensor:
        """The targets of the head's losses: target_BT of tokens, or target_B of classes."""
        raise NotImplementedError

    @property
    def targets(self) -> float:
        """The number of targets that count; figures such as the accuracy are divided by it."""
        return self.weight

    @property
    def pad(self) -> Tensor | None:
        """Returns pad_BT, True where the model's features are padding, for heads that pool the features of a row."""
        return None

    @property
    def examples(self) -> list[int]:
        """The numbers of the examples."""
        return self.ids_B[: len(self.ids_B) - self.fillers].tolist()

    def as_empty(self) -> Self:
        """Returns this batch with weight 0, as a micro-batch for a rank without examples.

        The loss of a batch of weight 0 is multiplied by 0 in training, so that its targets do not matter.
        """
        return dataclasses.replace(self, weight=0)

    def filled(self, shape: Shape) -> Self:
        """Returns this batch padded to the lengths of `shape`, and with filler rows up to its rows.

        Filler rows are copies of the first row, so that no row is all padding. Their targets do not count: PAD for
        tokens, -1 for classes.
        """
        fillers = shape.rows - len(self.ids_B)
        if fillers < 0:
            raise ValueError(f"{len(self.ids_B)} rows do not fit {shape}")
        changed: dict[str, Any] = {}
        for name, tensor in self._tensors().items():
            filler = tensor[:1]
            if tensor is self.ids_B or tensor is self.target:
                filler = torch.full_like(filler, PAD if tensor.ndim > 1 else -1)
            changed[name] = torch.cat([tensor, filler.expand(fillers, *filler.shape[1:])])
            if name in self.sides:
                missing = shape.lengths[self.sides[name]] - tensor.shape[1]
                if missing < 0:
                    raise ValueError(f"{name} of length {tensor.shape[1]} does not fit {shape}")
                changed[name] = functional.pad(changed[name], (0, missing), value=PAD)
        return dataclasses.replace(self, **changed, fillers=self.fillers + fillers)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: function(tensor) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **changed)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class TranslationBatch(Batch):
    """Pairs of sentences, both ending in EOS, padded with PAD on the right."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0, "previous_BT": 1, "target_BT": 1}

    source_BS: Tensor
    previous_BT: Tensor
    """What the decoder reads: the target shifted by one, with EOS first (fairseq's convention)."""
    target_BT: Tensor

    @property
    def target(self) -> Tensor:
        return self.target_BT


@dataclass(frozen=True)
class LanguageBatch(Batch):
    """Pieces of a stream of tokens, padded with PAD on the right."""

    sides: ClassVar[Mapping[str, int]] = {"previous_BT": 0, "target_BT": 0}

    previous_BT: Tensor
    """What the model reads: at each position the token before its target."""
    target_BT: Tensor
    """PAD where nothing is predicted: after a row's end, and in its context."""

    @property
    def target(self) -> Tensor:
        return self.target_BT


@dataclass(frozen=True)
class ClassBatch(Batch):
    """Rows of tokens, padded with PAD on the right, each with a class."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0}

    source_BS: Tensor
    target_B: Tensor
    """The number of each row's class, from 0."""
    padded: bool = True
    """Whether any row may have padding; if none has, layers and heads run without a mask."""

    @property
    def target(self) -> Tensor:
        return self.target_B

    @property
    def targets(self) -> float:
        if torch.compiler.is_compiling():  # no number of a batch may be a constant of the graph
            return (self.target_B >= 0).sum()  # type: ignore[return-value]
        return len(self.target_B) - self.fillers if self.weight else 0

    @property
    def texts(self) -> Tensor:
        """texts_RS: every sequence that the encoder reads."""
        return self.source_BS

    @property
    def pad(self) -> Tensor | None:
        return self.texts == PAD if self.padded else None

    def filled(self, shape: Shape) -> Self:
        """As of every batch. Whether there is a mask depends on the shape alone, if it can."""
        is_longer = self.source_BS.shape[1] < shape.lengths[0]
        return dataclasses.replace(super().filled(shape), padded=self.padded or is_longer or not shape.exact)


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """Rows of tokens of which some are hidden or replaced, padded with PAD on the right."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0, "target_BS": 0}

    source_BS: Tensor
    target_BS: Tensor
    """The original token where one is predicted, else PAD."""

    @property
    def target(self) -> Tensor:
        return self.target_BS

    @property
    def texts(self) -> Tensor:
        """texts_RS: every sequence that the encoder reads."""
        return self.source_BS

    @property
    def pad(self) -> Tensor:
        return self.source_BS == PAD


@dataclass(frozen=True, kw_only=True)
class PairBatch(ClassBatch):
    """Pairs of rows of tokens, all padded to one length, each pair with a class."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0, "second_BS": 1}

    second_BS: Tensor

    def filled(self, shape: Shape) -> Self:
        return super().filled(dataclasses.replace(shape, lengths=(max(shape.lengths),) * 2))

    @property
    def texts(self) -> Tensor:
        """texts_RS, R = 2 B: the first rows of all pairs, then the second ones."""
        return torch.cat([self.source_BS, self.second_BS])


class Examples(Protocol[E_co]):
    """An object with a length that returns examples by index. It must be picklable if workers read it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> E_co: ...


class Dataset(Examples[Any], Protocol):
    """The examples of a split by index. The lengths of all examples are known without reading any."""

    sizes_ND: npt.NDArray[np.int32]
    """The lengths of each example, one column a side (source, target)."""
    truncated: int
    """How many examples lost their end, since they are too long for the model."""


def take(dataset: Examples[E], indices: Sequence[int]) -> list[E]:
    """Returns the examples at `indices`, in one call if the dataset has a method `take`."""
    own: Callable[[Sequence[int]], list[E]] | None = getattr(dataset, "take", None)
    return [dataset[index] for index in indices] if own is None else own(indices)


def read_batch(dataset: Examples[E], collate: Callable[[list[E]], B], indices: Sequence[int], shape: Shape | None) -> B:
    """Reads and collates the examples at `indices`, and pads the batch to `shape` unless it is None."""
    batch = collate(take(dataset, indices))
    return batch if shape is None else batch.filled(shape)


def pad_rows(rows: Sequence[np.ndarray], *, length: int | None = None) -> Tensor:
    """rows_BT: the id sequences as one int64 tensor, PAD on the right up to `length` or the longest row."""
    padded = np.full((len(rows), length or max(map(len, rows))), PAD, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def check_ids(ids: Tensor, vocabulary: Vocabulary, *, name: str) -> None:
    """Raises UserError for an id that is not in `vocabulary`. `name` is the vocabulary's name in the error."""
    largest = int(ids.max()) if ids.numel() else 0
    if largest >= len(vocabulary):
        raise UserError(
            f"The data contain the token id {largest:,}, but {name} has only {len(vocabulary):,} tokens.",
            "It is truncated or belongs to other data: copy it again, or make the data-bin again.",
        )


def collate_pairs(examples: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> TranslationBatch:
    """The batch of `(index, source ids, target ids)`, each sequence ending in EOS."""
    indices, sources, targets = zip(*examples, strict=True)
    target_BT = pad_rows(targets)
    previous_BT = target_BT.roll(1, dims=1)
    previous_BT[previous_BT == EOS] = PAD
    previous_BT[:, 0] = EOS
    return TranslationBatch(
        ids_B=torch.tensor(indices),
        weight=sum(map(len, targets)),
        source_BS=pad_rows(sources),
        previous_BT=previous_BT,
        target_BT=target_BT,
    )
