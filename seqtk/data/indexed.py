"""Reads token ids from data sets in fairseq's memory-mapped format (see `IndexedWriter`) or fairseq's older format.

A data set consists of two files: `PREFIX.bin` contains the concatenated ids of all items, and `PREFIX.idx` the start
and the length of each item (`docs/formats.md` describes both layouts byte by byte). Items are read with `pread`, not
mapped into memory. So memory does not grow with the number of items read, and if a file becomes shorter while it is in
use, an exception is raised. With a mapped file, the signal SIGBUS would kill the process.
"""

import errno
import os
import resource
import struct
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.utils.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
DTYPES: dict[int, str] = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
HEADER = struct.Struct("<9sQBQ")
LEGACY_HEADER = struct.Struct("<8sQQQQQ")
_BLOCK = 1 << 20


AGAIN = "Copy the file again, or make the data-bin again, then run the same command."
"""The fix of an error about a missing or damaged file."""


class IndexedDataset:
    """A data set of token ids. `dataset[i]` reads item i and returns it as an int64 array.

    `sizes` contains the number of ids of each item, including EOS. Picklable: the copy opens the files again.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = str(prefix)
        self._index, self._data = _File(f"{prefix}.idx"), _File(f"{prefix}.bin")
        start = self._index.read(0, min(len(MAGIC), self._index.size))
        if start.startswith(LEGACY_MAGIC):
            self._length, self._dtype, self._sizes_at, self._starts_at = _legacy_layout(self._index, self.prefix)
            self._unit, self._shift = self._dtype.itemsize, 1
        elif start == MAGIC:
            self._length, self._dtype, self._sizes_at, self._starts_at = _layout(self._index, self.prefix)
            self._unit, self._shift = 1, 0
        else:
            raise UserError(f"{prefix}.idx is not the index of a data set, because it begins with {start!r}.")
        last, expected = self._length - 1, 0
        if self._length:
            expected = self._start(last) + int(self._stored_sizes(last, 1)[0]) * self._dtype.itemsize
        if self._data.size != expected:
            raise UserError(
                f"{prefix}.bin has {self._data.size:,} bytes, but {prefix}.idx requires {expected:,}.",
                "The file is truncated, or belongs to a different index.",
                AGAIN,
            )

    def __len__(self) -> int:
        return self._length

    @cached_property
    def sizes(self) -> npt.NDArray[np.int32]:
        """The number of ids in each item."""
        sizes: npt.NDArray[np.int32] = np.empty(self._length, dtype=np.int32)
        for first in range(0, self._length, _BLOCK):
            sizes[first : first + _BLOCK] = self._stored_sizes(first, min(_BLOCK, self._length - first))
        return sizes

    def _start(self, i: int) -> int:
        """Returns the byte offset of item i."""
        return int(struct.unpack("<q", self._index.read(self._starts_at + 8 * i, 8))[0]) * self._unit

    def _stored_sizes(self, first: int, count: int) -> npt.NDArray[Any]:
        itemsize = 8 if self._shift else 4
        stored = self._index.read(self._sizes_at + itemsize * first, itemsize * count)
        return np.frombuffer(stored, dtype=f"<i{itemsize}")

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        if not -self._length <= i < self._length:
            raise IndexError(f"index {i} is out of range: {self.prefix} has {self._length} items")
        i = int(i) % self._length
        return self._read(self._start(i), int(self.sizes[i]))

    def take(self, indices: Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """Returns the items at `indices`. This takes half the time of reading the items one by one."""
        places = np.array(indices, dtype=np.int64)
        sizes = self.sizes[places].astype(np.int64)
        starts = np.frombuffer(self._index.gather(self._starts_at + 8 * places, np.full(len(places), 8)), dtype="<i8")
        stored = self._data.gather(starts * self._unit, sizes * self._dtype.itemsize)
        ids = self._decoded(stored)
        return [ids[first:last] for first, last in pairwise([0, *np.cumsum(sizes).tolist()])]

    @property
    def total(self) -> int:
        """The total number of ids."""
        return self._data.size // self._dtype.itemsize

    def stream(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Returns the ids `start` to `end` - 1 of the concatenated items."""
        return self._read(start * self._dtype.itemsize, end - start)

    def _read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Reads `count` ids, starting at byte `start`."""
        if not count:
            return np.zeros(0, dtype=np.int64)
        return self._decoded(self._data.read(start, count * self._dtype.itemsize))

    def _decoded(self, stored: bytes) -> npt.NDArray[np.int64]:
        ids: npt.NDArray[np.int64] = np.frombuffer(stored, dtype=self._dtype).astype(np.int64)
        if self._shift:
            ids -= self._shift
        return ids

    def __reduce__(self) -> tuple[type["IndexedDataset"], tuple[str]]:
        return IndexedDataset, (self.prefix,)


class JoinedItems:
    """A concatenation of data sets, without copies: the items of the first, then the items of the second, and so on."""

    def __init__(self, parts: Sequence[IndexedDataset]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._stream_ends = np.cumsum([part.total for part in parts], dtype=np.int64)
        self.sizes: npt.NDArray[np.int32] = np.concatenate([part.sizes for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range: there are {len(self)} items")
        i = int(i) % len(self)
        number = int(self._ends.searchsorted(i, side="right"))
        return self.parts[number][i - int(self._ends[number])]

    @property
    def total(self) -> int:
        """The total number of ids."""
        return int(self._stream_ends[-1])

    def stream(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Returns the ids `start` to `end` - 1 of the concatenated items."""
        pieces = []
        for part, part_end in zip(self.parts, self._stream_ends.tolist(), strict=True):
            first, last = max(start - part_end + part.total, 0), min(end - part_end + part.total, part.total)
            if first < last:
                pieces.append(part.stream(first, last))
        return np.concatenate([*pieces, np.zeros(0, dtype=np.int64)])


class _File:
    """A file opened for reading. `size` is its size when it was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._descriptor = _open(path)
        except FileNotFoundError:
            raise UserError(f"There is no file {path}.", AGAIN) from None
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, count: int) -> bytes:
        """Reads `count` bytes, starting at byte `start`. Raises UserError if the file is too short or unreadable."""
        try:
            read = os.pread(self._descriptor, count, start)
            while (
                len(read) < count
            ):  # pread may return fewer bytes than requested, but returns none only at the end of a file
                more = os.pread(self._descriptor, count - len(read), start + len(read))
                if not more:
                    raise UserError(
                        f"{self.path} has become shorter while it was in use: byte {start + len(read):,} is missing.",
                        AGAIN,
                    )
                read += more
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}.", "Check the disk.") from error
        return read

    def gather(self, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> bytes:
        """Returns the concatenation of several ranges of bytes. Raises UserError as `read` does."""
        ranges = list(zip(starts.tolist(), counts.tolist(), strict=True))
        with suppress(OSError):
            found = b"".join([os.pread(self._descriptor, count, start) for start, count in ranges])
            if len(found) == counts.sum():
                return found
        return b"".join([self.read(start, count) for start, count in ranges])


def _open(path: str) -> int:
    """Opens a file and returns its descriptor. If too many files are open, raises the soft limit to the hard limit."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        raise UserError(
            f"{path} cannot be opened: this process may have at most {soft} open files.",
            "Raise the limit in the shell, for example ulimit -n 4096, or split the data into fewer parts.",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _open(path)


def _layout(index: _File, prefix: str) -> tuple[int, np.dtype[Any], int, int]:
    """Parses an index in the newer format. Returns (number of items, data type, offset of sizes, offset of starts)."""
    if index.size < HEADER.size:
        raise UserError(f"{prefix}.idx is truncated: it has {index.size} bytes.", AGAIN)
    _, version, code, length = HEADER.unpack(index.read(0, HEADER.size))
    dtype = _token_type(version, code, prefix)
    expected = HEADER.size + 12 * length
    if index.size != expected:
        documents = struct.unpack("<Q", index.read(HEADER.size, 8))[0] if index.size >= HEADER.size + 8 else -1
        if index.size == expected + 8 + 8 * documents:
            raise UserError(
                f"{prefix}.idx has the format of Megatron-LM, with a document index, which is not supported.",
                "Preprocess the text again, with seqtk-preprocess or fairseq-preprocess.",
            )
        raise UserError(
            f"{prefix}.idx is truncated or damaged: it has {index.size:,} bytes, but must have {expected:,}.",
            AGAIN,
        )
    return length, dtype, HEADER.size, HEADER.size + 4 * length


def _legacy_layout(index: _File, prefix: str) -> tuple[int, np.dtype[Any], int, int]:
    """Parses an index in the older format. Returns (number of items, data type, offset of sizes, offset of starts)."""
    if index.size < LEGACY_HEADER.size:
        raise UserError(f"{prefix}.idx is truncated: it has {index.size} bytes.", AGAIN)
    _, version, code, _, length, dimensions = LEGACY_HEADER.unpack(index.read(0, LEGACY_HEADER.size))
    dtype = _token_type(version, code, prefix)
    starts_at = LEGACY_HEADER.size + 8 * (length + 1)
    sizes_at = starts_at + 8 * (length + 1)
    if dimensions != length:
        raise UserError(f"{prefix}.idx contains arrays of more than one dimension, which are not text.")
    if index.size != sizes_at + 8 * length:
        raise UserError(
            f"{prefix}.idx is damaged: it has {index.size:,} bytes, but must have {sizes_at + 8 * length:,}.",
            AGAIN,
        )
    return length, dtype, sizes_at, starts_at


def _token_type(version: int, code: int, prefix: str) -> np.dtype[Any]:
    if version != 1:
        raise UserError(f"{prefix}.idx has version {version} of the format; only version 1 is supported.")
    if code not in DTYPES:
        raise UserError(f"{prefix}.idx contains numbers with the data type code {code}, which are not token ids.")
    return np.dtype(DTYPES[code])
