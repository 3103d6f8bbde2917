"""Arrays of token ids in files: fairseq's memory-mapped format, read and written, and its older one, read.

A data set is two files. `PREFIX.bin` holds the ids of all items, one after the other; `PREFIX.idx` holds the start and
the length of each item (`docs/formats.md` gives both layouts byte by byte).
"""

import mmap
import os
import struct
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
DTYPES: dict[int, str] = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
HEADER = struct.Struct("<9sQBQ")
LEGACY_HEADER = struct.Struct("<8sQQQQQ")
_COUNT_OFFSET = HEADER.size - 8
_BLOCK = 1 << 20


def dtype_for(vocabulary_size: int | None) -> npt.DTypeLike:
    """The type fairseq stores the ids of a vocabulary in; it leaves some room below 65,536."""
    if vocabulary_size is not None and vocabulary_size < 65_500:
        return np.uint16
    return np.uint32 if vocabulary_size is None or vocabulary_size < 4_294_967_295 else np.int64


class IndexedDataset:
    """The items of a data set: `dataset[i]` is an int64 array. Items are read when they are indexed.

    `sizes` is how many ids each item has, eos included. Picklable: a copy opens the files again.
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
                f"{prefix}.bin has {len(data):,} bytes, but its index says {expected:,}.",
                "It was cut short, or belongs to another index: make or copy the data-bin directory again.",
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
        """The byte at which item i starts, and its number of ids."""
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
        """The number of ids in all items together."""
        return len(self._data) // self._dtype.itemsize

    def stream(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """The ids from number `start` up to `end` of all items one after the other."""
        return self._read(start * self._dtype.itemsize, end - start)

    def _read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """`count` ids from byte `start` on."""
        if not count:
            return np.zeros(0, dtype=np.int64)
        ids = np.frombuffer(self._data, dtype=self._dtype, count=count, offset=start).astype(np.int64)
        if self._shift:
            ids -= self._shift
        return ids

    def __reduce__(self) -> tuple[type["IndexedDataset"], tuple[str]]:
        return IndexedDataset, (self.prefix,)


def _map(path: str) -> Any:
    """The bytes of a file, mapped into memory; an empty file, which cannot be mapped, as no bytes."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"There is no {path}.") from None


def _layout(index: Any, prefix: str) -> tuple[int, np.dtype[Any], int, int]:
    """(items, type, offset of the sizes, offset of the starts) of a memory-mapped data set's index."""
    if len(index) < HEADER.size:
        raise UserError(f"{prefix}.idx was cut short: it has {len(index)} bytes.")
    _, version, code, length = HEADER.unpack_from(index)
    dtype = _token_type(version, code, prefix)
    expected = HEADER.size + 12 * length
    if len(index) != expected:
        documents = struct.unpack_from("<Q", index, HEADER.size)[0] if len(index) >= HEADER.size + 8 else -1
        if len(index) == expected + 8 + 8 * documents:
            raise UserError(
                f"{prefix}.idx is Megatron-LM's variant of the format, with a document index, which is not read here.",
                "Preprocess the text again, with seqtk-preprocess or fairseq-preprocess.",
            )
        raise UserError(
            f"{prefix}.idx has {len(index):,} bytes, but {expected:,} are needed for its {length:,} items.",
            "It was cut short or is damaged: make or copy the data-bin directory again.",
        )
    return length, dtype, HEADER.size, HEADER.size + 4 * length


def _legacy_layout(index: Any, prefix: str) -> tuple[int, np.dtype[Any], int, int]:
    """(items, type, offset of the sizes, offset of the starts) of an older data set's index."""
    if len(index) < LEGACY_HEADER.size:
        raise UserError(f"{prefix}.idx was cut short: it has {len(index)} bytes.")
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
        raise UserError(f"{prefix}.idx has version {version} of the format; only version 1 is known.")
    if code not in DTYPES:
        raise UserError(f"{prefix}.idx holds numbers of type {code}, which are not token ids.")
    return np.dtype(DTYPES[code])


class IndexedWriter:
    """Writes a data set in the memory-mapped format, byte for byte as fairseq does, in constant memory.

    A context manager: both files get their names when it ends, none if it ends by an exception.
    """

    def __init__(self, prefix: str | os.PathLike[str], *, vocabulary_size: int | None) -> None:
        self.dtype = np.dtype(dtype_for(vocabulary_size))
        self.items = 0
        self._stack = ExitStack()
        self._data = self._stack.enter_context(atomic_file(f"{prefix}.bin"))
        self._index = self._stack.enter_context(atomic_file(f"{prefix}.idx", "w+b"))
        code = next(code for code, name in DTYPES.items() if np.dtype(name) == self.dtype)
        self._index.write(HEADER.pack(MAGIC, 1, code, 0))

    def append(self, ids: npt.ArrayLike) -> None:
        """Add one item."""
        item = np.asarray(ids, dtype=np.int64)
        self.extend_arrays(item, np.array([len(item)]))

    def extend_arrays(self, flat: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> None:
        """Add `len(sizes)` items, whose ids stand one after the other in `flat`."""
        if len(flat) != int(sizes.sum()):
            raise ValueError(f"{len(flat)} ids for items of {int(sizes.sum())}")
        self._data.write(np.ascontiguousarray(flat, dtype=self.dtype.newbyteorder("<")).data)
        self._index.write(np.ascontiguousarray(sizes, dtype="<i4").data)
        self.items += len(sizes)

    def _write_starts(self) -> None:
        """Writes, after the sizes, the byte at which each item starts: their running sum, computed block by block."""
        self._index.seek(_COUNT_OFFSET)
        self._index.write(struct.pack("<Q", self.items))
        start = 0
        for first in range(0, self.items, _BLOCK):
            count = min(_BLOCK, self.items - first)
            self._index.seek(HEADER.size + 4 * first)
            sizes = np.frombuffer(self._index.read(4 * count), dtype="<i4")
            ends = start + np.cumsum(sizes, dtype="<i8") * self.dtype.itemsize
            self._index.seek(HEADER.size + 4 * self.items + 8 * first)
            self._index.write(np.concatenate([[start], ends[:-1]]).astype("<i8").data)
            start = int(ends[-1])

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            self._write_starts()
