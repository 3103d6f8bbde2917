"""Concatenates the parts of a split that consists of several data sets."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seqtk.data.indexed import IndexedDataset


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
