"""Reads token ids from data sets in fairseq's memory-mapped format, which `IndexedWriter` writes, or its older format.

A data set is two files. `PREFIX.bin` holds the ids of all items, one after the other; `PREFIX.idx` holds the start and
the length of each item (`docs/formats.md` gives both layouts byte by byte).
"""

import mmap
import os
import struct
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.utils.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
DTYPES: dict[int, str] = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
HEADER = struct.Struct("<9sQBQ")
LEGACY_HEADER = struct.Struct("<8sQQQQQ")


class IndexedDataset:
    """The items of a data set: `dataset[i]` is an int64 array. Items are read when they are indexed.

    `sizes` holds the number of ids of each item, EOS included. The object can be pickled: a copy opens the files again.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = str(prefix)
        index, data = _map(f"{prefix}.idx"), _map(f"{prefix}.bin")
        self._index, self._data = index, data
        if index[: len(LEGACY_MAGIC)] == LEGACY_MAGIC:
            self._length, self._dtype, self._sizes_at, self._starts_at = _legacy_layout(index, self.prefix)
            self._unit, self._shift = self._dtype.itemsize, 1
        elif index[: len(MAGIC)] == MAGIC:
            self._length, self._dtype, self._sizes_at, self._starts_at = _layout(index, self.prefix)
            self._unit, self._shift = 1, 0
        else:
            raise UserError(f"{prefix}.idx is not an index: it begins with {bytes(index[:9])!r}.")
        start, size = self._place(self._length - 1) if self._length else (0, 0)
        expected = start + size * self._dtype.itemsize
        if len(data) != expected:
            raise UserError(
                f"{prefix}.bin has {len(data):,} bytes, but its index requires {expected:,}.",
                "It is truncated or belongs to another index: make or copy the data-bin directory again.",
            )

    def __len__(self) -> int:
        return self._length

    @cached_property
    def sizes(self) -> npt.NDArray[np.int32]:
        """The number of ids in each item."""
        legacy = self._shift == 1
        stored = np.frombuffer(self._index, dtype="<i8" if legacy else "<i4", count=self._length, offset=self._sizes_at)
        return stored.astype(np.int32)

    def _place(self, i: int) -> tuple[int, int]:
        """Returns the byte offset of item i, and its number of ids."""
        legacy = self._shift == 1
        (start,) = struct.unpack_from("<q", self._index, self._starts_at + 8 * i)
        (size,) = struct.unpack_from("<q" if legacy else "<i", self._index, self._sizes_at + (8 if legacy else 4) * i)
        return start * self._unit, size

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        if not -self._length <= i < self._length:
            raise IndexError(f"item {i} of the {self._length} in {self.prefix}")
        start, size = self._place(int(i) % self._length)
        return self._read(start, size)

    @property
    def total(self) -> int:
        """The total number of ids."""
        return len(self._data) // self._dtype.itemsize

    def stream(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Returns the ids `start` to `end` - 1 of the concatenated items."""
        return self._read(start * self._dtype.itemsize, end - start)

    def _read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Reads `count` ids from byte `start` on."""
        if not count:
            return np.zeros(0, dtype=np.int64)
        ids = np.frombuffer(self._data, dtype=self._dtype, count=count, offset=start).astype(np.int64)
        if self._shift:
            ids -= self._shift
        return ids

    def __reduce__(self) -> tuple[type["IndexedDataset"], tuple[str]]:
        return IndexedDataset, (self.prefix,)


def _map(path: str) -> Any:
    """Maps a file into memory. Returns an empty array for an empty file, which cannot be mapped."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None


def _layout(index: Any, prefix: str) -> tuple[int, np.dtype[Any], int, int]:
    """Returns (items, type, offset of the sizes, offset of the starts) of a memory-mapped data set's index."""
    if len(index) < HEADER.size:
        raise UserError(f"{prefix}.idx is truncated: it has {len(index)} bytes.")
    _, version, code, length = HEADER.unpack_from(index)
    dtype = _token_type(version, code, prefix)
    expected = HEADER.size + 12 * length
    if len(index) != expected:
        documents = struct.unpack_from("<Q", index, HEADER.size)[0] if len(index) >= HEADER.size + 8 else -1
        if len(index) == expected + 8 + 8 * documents:
            raise UserError(
                f"{prefix}.idx is Megatron-LM's variant of the format, with a document index, which is not supported.",
                "Preprocess the text again, with seqtk-preprocess or fairseq-preprocess.",
            )
        raise UserError(
            f"{prefix}.idx has {len(index):,} bytes, but {expected:,} are needed for its {length:,} items.",
            "It is truncated or damaged: make or copy the data-bin directory again.",
        )
    return length, dtype, HEADER.size, HEADER.size + 4 * length


def _legacy_layout(index: Any, prefix: str) -> tuple[int, np.dtype[Any], int, int]:
    """Returns (items, type, offset of the sizes, offset of the starts) of an older data set's index."""
    if len(index) < LEGACY_HEADER.size:
        raise UserError(f"{prefix}.idx is truncated: it has {len(index)} bytes.")
    _, version, code, _, length, dimensions = LEGACY_HEADER.unpack_from(index)
    dtype = _token_type(version, code, prefix)
    starts_at = LEGACY_HEADER.size + 8 * (length + 1)
    sizes_at = starts_at + 8 * (length + 1)
    if dimensions != length:
        raise UserError(f"{prefix}.idx holds arrays of more than one dimension, which are not text.")
    if len(index) != sizes_at + 8 * length:
        raise UserError(f"{prefix}.idx has {len(index):,} bytes instead of {sizes_at + 8 * length:,}: it is damaged.")
    return length, dtype, sizes_at, starts_at


def _token_type(version: int, code: int, prefix: str) -> np.dtype[Any]:
    if version != 1:
        raise UserError(f"{prefix}.idx has version {version} of the format; only version 1 is supported.")
    if code not in DTYPES:
        raise UserError(f"{prefix}.idx holds numbers of type {code}, which are not token ids.")
    return np.dtype(DTYPES[code])
