"""Writes token ids to data sets that `seqtk.data.indexed` reads."""

import os
import struct
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.data.indexed import DTYPES, HEADER, MAGIC
from seqtk.utils.files import atomic_file

_COUNT_OFFSET = HEADER.size - 8
_BLOCK = 1 << 20


def dtype_for(vocabulary_size: int | None) -> npt.DTypeLike:
    """Returns the data type in which fairseq stores the ids: uint16 for vocabularies of fewer than 65,500 tokens."""
    if vocabulary_size is not None and vocabulary_size < 65_500:
        return np.uint16
    return np.uint32 if vocabulary_size is None or vocabulary_size < 4_294_967_295 else np.int64


class IndexedWriter:
    """Writes a data set in the memory-mapped format, byte for byte as fairseq does, in constant memory.

    It is a context manager. The files are created when the `with` block ends, unless the block raises an exception.
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
        """Appends one item."""
        item = np.asarray(ids, dtype=np.int64)
        self.extend_arrays(item, np.array([len(item)]))

    def extend_arrays(self, flat: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> None:
        """Appends `len(sizes)` items, whose ids are concatenated in `flat`."""
        if len(flat) != int(sizes.sum()):
            raise ValueError(f"flat has {len(flat)} ids, but the sizes sum to {int(sizes.sum())}")
        self._data.write(np.ascontiguousarray(flat, dtype=self.dtype.newbyteorder("<")).data)
        self._index.write(np.ascontiguousarray(sizes, dtype="<i4").data)
        self.items += len(sizes)

    def _write_starts(self) -> None:
        """Writes the byte offset of each item after the sizes.

        The offsets are running sums, computed block by block.
        """
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
