"""Progress reports of long operations: lines of text, and bars on a terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seqtk.utils.text_io import SUFFIXES


@dataclass(frozen=True)
class Reporter:
    """Reports progress. By default it reports nothing.

    Attributes:
        notify: Called with each line of text.
        progress: True to show progress bars if standard error is a terminal.
    """

    notify: Callable[[str], None] = lambda message: None
    progress: bool = False

    def bar(self, total: int | None, title: str, *, unit: str = "B", initial: int = 0) -> "tqdm[Any]":
        """Returns a progress bar for `total` units (None: unknown). It starts at `initial`."""
        disable = None if self.progress else True
        return tqdm(total=total, desc=title, unit=unit, unit_scale=True, initial=initial, disable=disable, leave=False)

    def bytes_bar(self, path: Path, title: str) -> "tqdm[Any]":
        """Returns a progress bar over the bytes of a file. The total is unknown if the file is compressed."""
        return self.bar(None if path.suffix in SUFFIXES[1:] else path.stat().st_size, title)


def format_counts(counts: Mapping[str, int]) -> str:
    """Returns the counts with their names as text: 4 lines, 3 words."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
