"""Reads labeled items (pixels or tokens, with a class per item) from NumPy files. Nothing is unpickled.

An `.npz` file contains all arrays, by name. An `.npy` file `STEM.npy` contains the items, and the files
`STEM.NAME.npy` in the same folder contain the other arrays. Items are the flattened rows of an array [N, ...], or are
concatenated in an array [S] with a second array [N] of their lengths. Rows with lengths may be padded: the symbols
after the length are dropped.

N items, S symbols (a symbol is a pixel or a token).
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

from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

ARRAY_FORMATS = ("npz", "npy")
"""The extensions of NumPy files, without the dot."""

_PART = 1 << 20
"""The number of symbols that are read at a time."""
_MAX_SYMBOLS = 1 << 20
"""Maximum size of a dictionary. Without a limit, one wrong number in the data would make a huge dictionary."""
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs only in the encoding of field names, which no array here has
}
_DAMAGE_ERRORS = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)

Ints = npt.NDArray[np.int64]
Part = tuple[npt.NDArray[Any], Ints]
"""(The concatenated symbols of some items, the sizes of the items)."""


def is_array_file(path: str) -> bool:
    """Returns True if a file has the extension of a NumPy file."""
    return Path(path).suffix.removeprefix(".") in ARRAY_FORMATS


@dataclass(frozen=True)
class _StoredArray:
    """An array in an open file, whose header has been read."""

    name: str
    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, count: int) -> npt.NDArray[Any]:
        """Reads the next `count` numbers. Raises ValueError if the file has fewer."""
        content = self.file.read(count * self.dtype.itemsize)
        return np.frombuffer(content, dtype=self.dtype, count=count)


class ArrayFile:
    """Reads the items and the classes of one NumPy file.

    Args:
        path: An `.npz` or an `.npy` file.
        items: The name of the array of items in an `.npz` file.
        labels: The name of the array of classes [N], which are integers or strings.
        lengths: The name of the array of lengths [N], if there is one.

    Attributes:
        count: The number of items.

    Raises:
        UserError: If an array is missing or damaged, has a wrong type or shape, or would have to be unpickled.
    """

    def __init__(self, path: str, *, items: str, labels: str, lengths: str | None = None) -> None:
        self.path, self._items, self._labels = path, items, labels
        with self._open(items, is_items=True) as stored:
            if stored.dtype.kind not in "uib":
                raise UserError(
                    f"{stored.name} has numbers of type {stored.dtype}, which are not pixels or tokens.",
                    "Pixels must be uint8, and tokens integers such as int32.",
                )
            if not stored.shape or (len(stored.shape) == 1 and lengths is None):
                raise UserError(
                    f"{stored.name} has the shape {list(stored.shape)}, but must have one row per item.",
                    "Save one item per row, or set columns.lengths= if the items are concatenated.",
                )
            self.pixels = stored.dtype == np.uint8
            """True if the symbols are uint8."""
            self.shape = stored.shape
            """The shape of the array of items."""
        self._lengths = None if lengths is None else self._read_lengths(lengths)
        self.count = self.shape[0] if self._lengths is None else len(self._lengths)
        if not self.count:
            raise UserError(f"{path} has no examples.")
        if len(self.shape) > 1 and not math.prod(self.shape[1:]):
            raise UserError(f"{path} has items of the shape {list(self.shape[1:])}, which are empty.")

    def labels(self) -> list[str]:
        """Returns the name of the class of each item."""
        label_N = self._read_all(self._labels)
        if label_N.ndim == 2 and label_N.shape[1] == 1:
            label_N = label_N[:, 0]
        if label_N.dtype.kind not in "uiUS" or label_N.shape != (self.count,):
            raise UserError(
                f"{self._name_of(self._labels)} has the type {label_N.dtype} and the shape {list(label_N.shape)}.",
                f"It must have an integer or a string for each of the {self.count:,} items.",
            )
        return [self._text(label, number) for number, label in enumerate(label_N.tolist(), 1)]

    def _text(self, label: int | str | bytes, number: int) -> str:
        try:
            encoded = label if isinstance(label, bytes) else str(label).encode()
            return encoded.decode()
        except UnicodeError:
            raise UserError(
                f"Example {number:,} of {self.path} has a class that is not valid Unicode: {label!r}.",
                "Save the classes as integers or as an array of strings.",
            ) from None

    def largest(self) -> int:
        """Returns the largest token, or 255 for pixels."""
        if self.pixels:
            return 255
        return max(int(symbols.max(initial=0)) for symbols, _ in self.parts())

    def parts(self) -> Iterator[Part]:
        """Yields (tokens, lengths) of the next examples, until all are read.

        Raises UserError, with the number of the example, if a token is negative or too large.
        """
        is_flat, width = len(self.shape) == 1, math.prod(self.shape[1:])
        sizes_N = np.full(self.count, width) if self._lengths is None else self._lengths
        ends_N = np.cumsum(sizes_N if is_flat else np.full(self.count, width))  # in the file, including padding
        start = before = 0
        with self._open(self._items, is_items=True) as stored:
            while start < self.count:
                end = max(start + 1, int(np.searchsorted(ends_N, before + _PART, side="right")))
                symbols, sizes = stored.read(int(ends_N[end - 1]) - before), sizes_N[start:end]
                if not is_flat and self._lengths is not None:
                    symbols = symbols.reshape(-1, width)[np.arange(width) < sizes[:, None]]
                wrong = np.flatnonzero((symbols < 0) | (symbols >= _MAX_SYMBOLS)).tolist() if not self.pixels else []
                if len(wrong):
                    first = wrong[0]
                    number = start + int(np.searchsorted(np.cumsum(sizes), first, side="right")) + 1
                    raise UserError(
                        f"Example {number:,} of {self.path} has the token {symbols[first]}.",
                        f"Tokens must be from 0 to {_MAX_SYMBOLS - 1:,}: the dictionary has 0 to the largest token.",
                        "Renumber the tokens: numpy.unique(array, return_inverse=True).",
                    )
                yield symbols, sizes
                start, before = end, int(ends_N[end - 1])

    def _read_lengths(self, name: str) -> Ints:
        lengths_N = self._read_all(name)
        flat, width = len(self.shape) == 1, math.prod(self.shape[1:])
        if lengths_N.dtype.kind not in "ui" or lengths_N.ndim != 1 or (lengths_N < 0).any():
            problem = "it must have a non-negative integer for each item"
        elif flat and int(lengths_N.sum(dtype=np.int64)) != self.shape[0]:
            problem = f"they sum to {int(lengths_N.sum(dtype=np.int64)):,}, but there are {self.shape[0]:,} symbols"
        elif not flat and (len(lengths_N) != self.shape[0] or int(lengths_N.max(initial=0)) > width):
            problem = f"it must have {self.shape[0]:,} lengths of at most {width:,}"
        else:
            return lengths_N.astype(np.int64)
        raise UserError(f"{self._name_of(name)} is not the array of the items' lengths: {problem}.")

    def _read_all(self, name: str) -> npt.NDArray[Any]:
        with self._open(name) as stored:
            return stored.read(math.prod(stored.shape)).reshape(stored.shape)

    def _name_of(self, name: str) -> str:
        return f"Array '{name}' of {self.path}" if self.path.endswith(".npz") else str(self._npy_path(name))

    def _npy_path(self, name: str) -> Path:
        return Path(self.path).with_suffix(f".{name}.npy")

    @contextmanager
    def _open(self, name: str, *, is_items: bool = False) -> Iterator[_StoredArray]:
        """Context manager that opens an array and reads its header.

        An `.npy` file contains the array of items (`is_items`). Other arrays are in separate files in its folder.
        """
        path = self.path
        try:
            if path.endswith(".npz"):
                with zipfile.ZipFile(path) as archive:
                    if f"{name}.npy" not in archive.namelist():
                        names = [member.removesuffix(".npy") for member in archive.namelist()]
                        raise UserError(
                            f"{path} has no array '{name}'.",
                            nearest(name, names),
                            "Set columns.text=, columns.label= and columns.lengths= (in seqtk-train, task.source.text= "
                            "and so on) to names of arrays in the file.",
                        )
                    size = archive.getinfo(f"{name}.npy").file_size
                    with archive.open(f"{name}.npy") as file:
                        yield self._read_header(self._name_of(name), file, size)
            else:
                npy_path = Path(path) if is_items else self._npy_path(name)
                path = str(npy_path)
                with open(npy_path, "rb") as file:
                    yield self._read_header(path, file, npy_path.stat().st_size)
        except FileNotFoundError:
            raise UserError(f"There is no file {path}.") from None
        except _DAMAGE_ERRORS as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{path} is damaged or is not a NumPy file: {reason}.") from None

    def _read_header(self, name: str, file: IO[bytes], size: int) -> _StoredArray:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise UserError(
                f"{name} is in version {version[0]}.{version[1]} of NumPy's file format, which seqtk does not read.",
                "Load it with a newer NumPy, and save it again: numpy.save(file, numpy.load(file)).",
            )
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise UserError(
                f"{name} is an array of Python objects, which are never unpickled.",
                "Save an array of numbers. For items of different lengths, see columns.lengths.",
            )
        if fortran and len(shape) > 1:
            raise UserError(f"{name} is in Fortran order.", "Save numpy.ascontiguousarray(array) instead.")
        if file.tell() + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{size:,} bytes do not contain an array {list(shape)} of {dtype}")
        return _StoredArray(name, file, shape, dtype)
