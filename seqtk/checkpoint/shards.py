"""Saves and loads the sharded state of the optimizer with `torch.distributed.checkpoint` (DCP).

DCP determines which piece of each tensor a process writes, and which pieces it must read if it now has a different
part of the tensor. The processes do not communicate for this. The storage is ours: one safetensors file for each
process, with checksums, and with the positions of its pieces in the header. The storage of DCP has no checksums and
describes a checkpoint in a pickle, which can run code when it is read.

Importing DCP takes half a second, so this module is imported where it is used.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from os import PathLike
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from seqtk.checkpoint.model_file import DAMAGED, TensorFile, Tensors
from seqtk.checkpoint.run_state import PIECES, Empty, Pieces, Place
from seqtk.utils.errors import UserError

T = TypeVar("T")


def stage(tensors: Tensors, *, rank: int, copies: bool) -> Pieces:
    """Returns the tensors that this process writes, on the CPU: its shards and, in the first process, unsharded ones.

    Copies from a GPU are complete after the current CUDA stream is synchronized.

    Args:
        tensors: The tensors of this process.
        rank: The rank of this process.
        copies: True to return copies, which do not share memory with `tensors`.
    """
    mine = {name: tensor for name, tensor in tensors.items() if rank == 0 or isinstance(tensor, DTensor)}
    stager, planner = _Stager(rank, copies=copies), DefaultSavePlanner(**_FLAT)
    with _without_communication():
        state_dict_saver.save(mine, storage_writer=stager, planner=planner, no_dist=True)
    return stager.pieces


def load(files: Sequence[TensorFile], empty: Empty) -> Tensors:
    """Reads this process's part of the tensors in the files of all processes that wrote a checkpoint.

    Raises:
        UserError: If a file is damaged, or a piece is missing or has a wrong position.
    """
    reader, planner = _Reader(files), DefaultLoadPlanner(**_FLAT)
    tensors = {name: empty(name, full) for name, full in reader.full().items()}
    with _without_communication():
        state_dict_loader.load(tensors, storage_reader=reader, planner=planner, no_dist=True)
    return tensors


_FLAT = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


@contextmanager
def _without_communication() -> Iterator[None]:
    """Context manager for calls of DCP (torch.distributed.checkpoint) with `no_dist=True`.

    Hides the warning that DCP runs in a single process. Replaces a CheckpointException by the exception in it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        try:
            yield
        except CheckpointException as error:  # not a subclass of Exception
            raise error.failures[0][0] from error


class _Stager(StorageWriter):
    """Stores the pieces that DCP assigns to this process until they are written."""

    def __init__(self, rank: int, *, copies: bool) -> None:
        self.pieces, self.copies = Pieces({}, {}, rank), copies

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: Tensors = {}
        places: dict[str, Place] = {}
        for item in plan.items:
            tensor, about, name = planner.resolve_data(item), item.tensor_data, item.index.fqn
            assert isinstance(tensor, Tensor), name
            assert about is not None, name
            tensors[name] = tensor.detach().to("cpu", copy=self.copies, non_blocking=True)
            if about.chunk.sizes != about.size:
                assert not any(about.chunk.offsets[1:]), name
                places[name] = {"start": about.chunk.offsets[0], "size": list(about.size)}
        self.pieces = Pieces(tensors, places, self.pieces.rank)
        return _done([WriteResult(item.index, tensors[item.index.fqn].nbytes, None) for item in plan.items])

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None: ...

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return False


@dataclass(frozen=True)
class _Piece:
    """A stored tensor: a whole tensor of shape `size`, or some of its rows, from row `start` on."""

    file: TensorFile
    stored: Tensor
    """The tensor without its values, on the device `meta`."""
    start: int
    size: torch.Size

    @property
    def offsets(self) -> torch.Size:
        return torch.Size([self.start, *[0] * (len(self.size) - 1)][: len(self.size)])


class _Reader(StorageReader):
    """Reads pieces from the files of a checkpoint. Raises UserError if they do not form full tensors."""

    def __init__(self, files: Sequence[TensorFile]) -> None:
        self.pieces: dict[str, list[_Piece]] = defaultdict(list)
        for file in files:
            for name in file.shapes:
                self.pieces[name].append(_piece(file, name))
        for name, pieces in self.pieces.items():
            _check_whole(name, pieces)

    def full(self) -> Tensors:
        """Returns the full tensors without their values, on the device `meta`."""
        return {
            name: torch.empty(pieces[0].size, dtype=pieces[0].stored.dtype, device="meta")
            for name, pieces in self.pieces.items()
        }

    def read_metadata(self) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(full.dtype),
                    full.shape,
                    [ChunkStorageMetadata(p.offsets, p.stored.shape) for p in self.pieces[name]],
                )
                for name, full in self.full().items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        stored = {MetadataIndex(name, p.offsets): p.file for name, pieces in self.pieces.items() for p in pieces}
        for item in plan.items:
            piece = stored[item.storage_index].read(item.storage_index.fqn)
            ranges = zip(item.storage_offsets, item.lengths, strict=True)
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece[tuple(slice(start, start + length) for start, length in ranges)])
            planner.commit_tensor(item, target)
        return _done(None)

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return False


def _piece(file: TensorFile, name: str) -> _Piece:
    """Returns a stored tensor with its position in the full tensor. Raises UserError if the header has no position."""
    stored = file.shapes[name]
    try:
        place = file.metadata.get(PIECES, {}).get(name, {"start": 0, "size": stored.shape})
        return _Piece(file, stored, index(place["start"]), torch.Size(place["size"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file.path} does not record which rows of '{name}' it contains: {error}.", DAMAGED) from error


def _check_whole(name: str, pieces: Sequence[_Piece]) -> None:
    """Raises UserError unless the pieces form one full tensor."""
    size, dtype, end = pieces[0].size, pieces[0].stored.dtype, 0
    for piece in sorted(pieces, key=lambda piece: (piece.start, piece.stored.numel())):
        shape = piece.stored.shape
        fits = piece.start == end and shape[1:] == size[1:] and len(shape) == len(size)
        if not fits or piece.size != size or piece.stored.dtype != dtype:
            raise UserError(
                f"{piece.file.path}: rows of the tensor '{name}' overlap, are missing or have a wrong shape.", DAMAGED
            )
        end += (*shape, 1)[0]
    if end != (*size, 1)[0]:
        raise UserError(f"{pieces[0].file.path.parent} does not contain all rows of the tensor '{name}'.", DAMAGED)


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
