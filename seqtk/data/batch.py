"""Batches: frozen dataclasses of tensors, with the weight by which the loss is divided.

B batch, S source length, T target length, N examples, D sides of an example (source and target, or one).
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
    """Base class of batches: the indices of the examples and the weight. Subclasses add tensors."""

    sides: ClassVar[Mapping[str, int]] = {}
    """Maps the name of each padded tensor to the column of `sizes_ND` with the lengths of its rows."""

    ids_B: Tensor
    """The index of the example in each row; -1 for filler rows."""
    weight: float
    """The number of targets, or the sum of their weights. The loss of an update is the sum of the losses of its batches
    divided by the sum of their weights."""
    fillers: int = field(default=0, kw_only=True)
    """The number of filler rows at the end, which pad the batch to a static shape. Their targets are ignored."""

    def to(self, device: torch.device) -> Self:
        """Returns this batch on `device`. The copy is asynchronous if the tensors are pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Returns this batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Prevents reuse of the tensors' memory until `stream` has used them (see `torch.Tensor.record_stream`)."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    @property
    def target(self) -> Tensor:
        """The targets of the loss: tokens target_BT, or classes target_B."""
        raise NotImplementedError

    @property
    def targets(self) -> float:
        """The number of targets, without padding and filler rows: the denominator of metrics such as accuracy."""
        return self.weight

    @property
    def pad(self) -> Tensor | None:
        """The padding mask pad_BT of the features (True: padding), for heads that pool features."""
        return None

    @property
    def examples(self) -> list[int]:
        """The indices of the examples, without filler rows."""
        return self.ids_B[: len(self.ids_B) - self.fillers].tolist()

    def as_empty(self) -> Self:
        """Returns a copy of this batch with weight 0, for a rank that has no examples left.

        In training, the loss of a batch of weight 0 is multiplied by 0.
        """
        return dataclasses.replace(self, weight=0)

    def filled(self, shape: Shape) -> Self:
        """Returns this batch with rows padded to the lengths of `shape`, and filler rows appended up to `shape.rows`.

        Filler rows are copies of the first row, so that no row consists only of padding. Their targets are ignored: PAD
        for tokens, -1 for classes.
        """
        fillers = shape.rows - len(self.ids_B)
        if fillers < 0:
            raise ValueError(f"a batch of {len(self.ids_B)} rows does not fit into {shape}")
        changed: dict[str, Any] = {}
        for name, tensor in self._tensors().items():
            filler = tensor[:1]
            if tensor is self.ids_B or tensor is self.target:
                filler = torch.full_like(filler, PAD if tensor.ndim > 1 else -1)
            changed[name] = torch.cat([tensor, filler.expand(fillers, *filler.shape[1:])])
            if name in self.sides:
                missing = shape.lengths[self.sides[name]] - tensor.shape[1]
                if missing < 0:
                    raise ValueError(f"{name} of length {tensor.shape[1]} does not fit into {shape}")
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
    """Pairs of sentences that end in EOS, padded with PAD on the right."""

    sides: ClassVar[Mapping[str, int]] = {"source_BS": 0, "previous_BT": 1, "target_BT": 1}

    source_BS: Tensor
    previous_BT: Tensor
    """The input of the decoder: EOS (as in fairseq), then the target without its last token."""
    target_BT: Tensor

    @property
    def target(self) -> Tensor:
        return self.target_BT


@dataclass(frozen=True)
class LanguageBatch(Batch):
    """Samples of a stream of tokens, padded with PAD on the right."""

    sides: ClassVar[Mapping[str, int]] = {"previous_BT": 0, "target_BT": 0}

    previous_BT: Tensor
    """The input of the model: at each position, the token before the target."""
    target_BT: Tensor
    """The targets. PAD where nothing is predicted: after the end of a row, and in its context."""

    @property
    def target(self) -> Tensor:
        return self.target_BT


class Examples(Protocol[E_co]):
    """Protocol of collections of examples that are read by index. Must be picklable if worker processes read them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> E_co: ...


class Dataset(Examples[Any], Protocol):
    """The examples of a split. `sizes_ND` gives the lengths of all examples without reading them."""

    sizes_ND: npt.NDArray[np.int32]
    """The lengths of each example, with one column per side (source, target)."""
    truncated: int
    """The number of examples that are truncated to the model's maximum length."""


def take(dataset: Examples[E], indices: Sequence[int]) -> list[E]:
    """Returns the examples at `indices`, in one call if the dataset has a method `take`."""
    own: Callable[[Sequence[int]], list[E]] | None = getattr(dataset, "take", None)
    return [dataset[index] for index in indices] if own is None else own(indices)


def read_batch(dataset: Examples[E], collate: Callable[[list[E]], B], indices: Sequence[int], shape: Shape | None) -> B:
    """Reads and collates the examples at `indices`. Pads the batch to `shape` unless `shape` is None."""
    batch = collate(take(dataset, indices))
    return batch if shape is None else batch.filled(shape)


def pad_rows(rows: Sequence[np.ndarray], *, length: int | None = None) -> Tensor:
    """Returns int64 rows_BT of the id sequences, padded with PAD on the right to `length` or the longest row."""
    padded = np.full((len(rows), length or max(map(len, rows))), PAD, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def check_ids(ids: Tensor, vocabulary: Vocabulary, *, name: str) -> None:
    """Raises UserError if an id is not in `vocabulary`. `name` is the name of the vocabulary in the error."""
    largest = int(ids.max()) if ids.numel() else 0
    if largest >= len(vocabulary):
        raise UserError(
            f"The data contain the token id {largest:,}, but {name} has only {len(vocabulary):,} tokens.",
            "The dictionary is truncated or belongs to different data. Copy it again, or make the data-bin again.",
        )


def collate_pairs(examples: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> TranslationBatch:
    """Collates examples `(index, source ids, target ids)` into a batch. All sequences must end in EOS."""
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
