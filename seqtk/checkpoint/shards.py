"""Saves and loads the sharded state of the optimizer, as `torch.distributed.checkpoint` (DCP) plans it.

DCP determines which piece of each tensor a process writes, and which pieces it must read if it now has a different
part of the tensor. The processes do not communicate for this. The storage is ours: one safetensors file for each
process, with checksums, and with the positions of its pieces in the header. The storage of DCP has no checksums and
describes a checkpoint in a pickle, which can run code when it is read.

Importing DCP takes half a second, so this module is imported where it is used.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor

from seqtk.checkpoint.model_file import DAMAGED, TensorFile, Tensors
from seqtk.checkpoint.run_state import PIECES, Empty, Pieces, Place
from seqtk.utils.errors import UserError

_FLAT = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


def stage(tensors: Tensors, *, rank: int, copies: bool) -> Pieces:
    """Returns the tensors that this process writes, on the CPU: its shards and, in the first process, unsharded ones.

    Copies from a GPU are complete after the current CUDA stream is synchronized.

    Args:
        tensors: The tensors of this process.
        rank: The rank of this process.
        copies: True to return copies, which do not share memory with `tensors`.
    """
    planner = DefaultSavePlanner(**_FLAT)
    mine = {name: tensor for name, tensor in tensors.items() if rank == 0 or isinstance(tensor, DTensor)}
    planner.set_up_planner(mine, is_coordinator=True)
    staged: Tensors = {}
    places: dict[str, Place] = {}
    for item in planner.create_local_plan().items:
        tensor, about, name = planner.resolve_data(item), item.tensor_data, item.index.fqn
        assert isinstance(tensor, Tensor), name
        assert about is not None, name
        staged[name] = tensor.detach().to("cpu", copy=copies, non_blocking=True)
        if about.chunk.sizes != about.size:
            assert not any(about.chunk.offsets[1:]), name
            places[name] = {"start": about.chunk.offsets[0], "size": list(about.size)}
    return Pieces(staged, places, rank)


def load(files: Sequence[TensorFile], empty: Empty) -> Tensors:
    """Reads this process's part of the tensors in the files of all processes that wrote a checkpoint.

    Raises:
        UserError: If a file is damaged, or a piece is missing or has a wrong position.
    """
    pieces: dict[str, list[_Piece]] = defaultdict(list)
    for file in files:
        for name in file.shapes:
            pieces[name].append(_piece(file, name))
    tensors: Tensors = {}
    stored: dict[MetadataIndex, TensorFile] = {}
    metadata = Metadata({})
    for name, parts in pieces.items():
        _check_whole(name, parts)
        size, dtype = parts[0].size, parts[0].stored.dtype
        tensors[name] = empty(name, torch.empty(size, dtype=dtype, device="meta"))
        stored |= {MetadataIndex(name, part.offsets): part.file for part in parts}
        chunks = [ChunkStorageMetadata(part.offsets, part.stored.shape) for part in parts]
        metadata.state_dict_metadata[name] = TensorStorageMetadata(TensorProperties(dtype), size, chunks)
    planner = DefaultLoadPlanner(**_FLAT)
    planner.set_up_planner(tensors, metadata, is_coordinator=True)
    for item in planner.create_local_plan().items:
        piece = stored[item.storage_index].read(item.storage_index.fqn)
        ranges = zip(item.storage_offsets, item.lengths, strict=True)
        rows = piece[tuple(slice(start, start + length) for start, length in ranges)]
        planner.resolve_tensor(item).detach().copy_(rows)
    return tensors


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
