"""Labelled arrays in files of NumPy: pixels or tokens with a class for each item, read in parts and never unpickled.

An `.npz` file holds all arrays by name. An `.npy` file holds the items; its other arrays are the files `STEM.NAME.npy`
next to it. Items are the rows of an array [N, ...], flattened, or stand one after another in an array [S] with a second
array [N] of their lengths. With lengths, rows may also be padded: the symbols after the length are dropped.

N items, S symbols.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from seqtk.utils.errors import UserError, nearest

ARRAY_FORMATS = ("npz", "npy")
"""The endings of files of NumPy, without the dot."""

_PART = 1 << 20
"""Symbols that are read together."""
_LARGEST_SYMBOL = 10_000_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGES = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)

Ints = npt.NDArray[np.int64]
Part = tuple[npt.NDArray[Any], Ints]
"""Symbols of some items, one item after the other, and the sizes of the items."""


def is_array_file(path: str) -> bool:
    """Whether the ending says that a file is one of NumPy."""
    return Path(path).suffix.removeprefix(".") in ARRAY_FORMATS


@dataclass(frozen=True)
class _Stored:
    """An array in a file, past its header."""

    name: str
    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, count: int) -> npt.NDArray[Any]:
        """The next `count` numbers. Raises ValueError if the file ends before."""
        content = self.file.read(count * self.dtype.itemsize)
        return np.frombuffer(content, dtype=self.dtype, count=count)


class ArrayFile:
    """The items and the classes of one file.

    Args:
        path: An `.npz` or an `.npy` file.
        items: The name of the array of items in an `.npz` file.
        labels: The name of the array of classes [N]: whole numbers or texts.
        lengths: The name of the array of lengths [N], if there is one.

    Attributes:
        count: The number of items.

    Raises:
        UserError: If an array is missing, damaged, of another type or shape, or would have to be unpickled.
    """

    def __init__(self, path: str, *, items: str, labels: str, lengths: str | None = None) -> None:
        self.path, self._items, self._labels = path, items, labels
        with self._open(items, of_file=True) as stored:
            if stored.dtype.kind not in "uib":
                raise UserError(
                    f"{stored.name} has numbers of type {stored.dtype}, not pixels or tokens.",
                    "Pixels are uint8 and tokens whole numbers, such as int32.",
                )
            if not stored.shape or (len(stored.shape) == 1 and lengths is None):
                raise UserError(
                    f"{stored.name} has the shape {list(stored.shape)}: it is not an array of items.",
                    "Save one item a row, or set columns.lengths= for items that stand one after another.",
                )
            self.pixels = stored.dtype == np.uint8
            """Whether the symbols are bytes, whatever their values."""
            self.shape = stored.shape
            """The shape of the array of items."""
        self._lengths = None if lengths is None else self._read_lengths(lengths)
        self.count = self.shape[0] if self._lengths is None else len(self._lengths)
        if not self.count:
            raise UserError(f"{path} has no examples.")
        if len(self.shape) > 1 and not math.prod(self.shape[1:]):
            raise UserError(f"{path}: the items of the shape {list(self.shape[1:])} are empty.")

    def labels(self) -> list[str]:
        """The class of each item."""
        label_N = self._whole(self._labels)
        if label_N.ndim == 2 and label_N.shape[1] == 1:
            label_N = label_N[:, 0]
        if label_N.dtype.kind not in "uiUS" or label_N.shape != (self.count,):
            raise UserError(
                f"{self._named(self._labels)} has the type {label_N.dtype} and the shape {list(label_N.shape)}.",
                f"It must have a whole number or a text for each of {self.count:,} items.",
            )
        return [each.decode() if isinstance(each, bytes) else str(each) for each in label_N.tolist()]

    def largest(self) -> int:
        """The largest symbol."""
        if self.pixels:
            return 255
        return max(int(symbols.max(initial=0)) for symbols, _ in self.parts())

    def parts(self) -> Iterator[Part]:
        """Yields all items, some at a time. Raises UserError, with the example, for a symbol that cannot be a token."""
        done = 0
        with self._open(self._items, of_file=True) as stored:
            for start, end in self._cuts():
                symbols, sizes = self._part(stored, start, end)
                wrong = np.flatnonzero((symbols < 0) | (symbols > _LARGEST_SYMBOL)).tolist() if not self.pixels else []
                if len(wrong):
                    first = wrong[0]
                    number = done + int(np.searchsorted(np.cumsum(sizes), first, side="right")) + 1
                    raise UserError(
                        f"Example {number:,} of {self.path} has the symbol {symbols[first]}.",
                        f"Tokens must be from 0 to {_LARGEST_SYMBOL:,}.",
                    )
                yield symbols, sizes
                done = end

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Yields the first item of each part and the one after its last."""
        if len(self.shape) > 1:
            rows = max(1, _PART // math.prod(self.shape[1:]))
            yield from ((start, min(start + rows, self.count)) for start in range(0, self.count, rows))
            return
        assert self._lengths is not None
        ends, start = np.cumsum(self._lengths), 0
        while start < self.count:
            before = int(ends[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + _PART, side="right")))
            yield start, end
            start = end

    def _part(self, stored: _Stored, start: int, end: int) -> Part:
        if len(self.shape) == 1:
            assert self._lengths is not None
            sizes = self._lengths[start:end]
            return stored.read(int(sizes.sum())), sizes
        width = math.prod(self.shape[1:])
        symbols = stored.read((end - start) * width)
        if self._lengths is None:
            return symbols, np.full(end - start, width)
        sizes = self._lengths[start:end]
        return symbols.reshape(-1, width)[np.arange(width) < sizes[:, None]], sizes

    def _read_lengths(self, name: str) -> Ints:
        lengths_N = self._whole(name)
        flat, most = len(self.shape) == 1, math.prod(self.shape[1:])
        if lengths_N.dtype.kind not in "ui" or lengths_N.ndim != 1 or (lengths_N < 0).any():
            problem = "it must have a whole number for each item"
        elif flat and int(lengths_N.sum(dtype=np.int64)) != self.shape[0]:
            problem = f"they sum to {int(lengths_N.sum(dtype=np.int64)):,}, but there are {self.shape[0]:,} symbols"
        elif not flat and (len(lengths_N) != self.shape[0] or int(lengths_N.max(initial=0)) > most):
            problem = f"it must have {self.shape[0]:,} lengths of at most {most:,}"
        else:
            return lengths_N.astype(np.int64)
        raise UserError(f"{self._named(name)} are not the lengths of the items: {problem}.")

    def _whole(self, name: str) -> npt.NDArray[Any]:
        with self._open(name) as stored:
            return stored.read(math.prod(stored.shape)).reshape(stored.shape)

    def _named(self, name: str) -> str:
        return f"Array '{name}' of {self.path}" if self.path.endswith(".npz") else str(self._beside(name))

    def _beside(self, name: str) -> Path:
        return Path(self.path).with_suffix(f".{name}.npy")

    @contextmanager
    def _open(self, name: str, *, of_file: bool = False) -> Iterator[_Stored]:
        """Opens an array and reads its header. `of_file`: it is the one of an `.npy` file itself."""
        path = self.path
        try:
            if path.endswith(".npz"):
                with zipfile.ZipFile(path) as archive:
                    if f"{name}.npy" not in archive.namelist():
                        names = [each.removesuffix(".npy") for each in archive.namelist()]
                        raise UserError(
                            f"{path} has no array '{name}'.",
                            nearest(name, names),
                            "columns.text=, columns.label= and columns.lengths= name its arrays.",
                        )
                    size = archive.getinfo(f"{name}.npy").file_size
                    with archive.open(f"{name}.npy") as file:
                        yield self._header(self._named(name), file, size)
            else:
                place = Path(path) if of_file else self._beside(name)
                path = str(place)
                with open(place, "rb") as file:
                    yield self._header(path, file, place.stat().st_size)
        except FileNotFoundError:
            raise UserError(f"There is no file {path}.") from None
        except _DAMAGES as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{path} is damaged or is not a file of NumPy: {said}.") from None

    def _header(self, name: str, file: IO[bytes], size: int) -> _Stored:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise UserError(
                f"{name} is an array of Python objects, which would have to be unpickled.",
                "Save an array of numbers; for items of different lengths see columns.lengths.",
            )
        if fortran and len(shape) > 1:
            raise UserError(f"{name} is in Fortran order.", "Save numpy.ascontiguousarray of it.")
        if file.tell() + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{size:,} bytes do not hold an array {list(shape)} of {dtype}")
        return _Stored(name, file, shape, dtype)
