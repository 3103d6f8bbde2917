"""What the one who waits is told: lines of text, and bars on a terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True)
class Reporter:
    """Where lines go, and whether bars are shown (on a terminal alone)."""

    notify: Callable[[str], None] = _silent
    progress: bool = False

    def bar(self, total: int | None, about: str, *, unit: str = "B", initial: int = 0) -> "tqdm[Any]":
        """A bar of `total` units, of which `initial` are done."""
        disable = None if self.progress else True
        return tqdm(total=total, desc=about, unit=unit, unit_scale=True, initial=initial, disable=disable, leave=False)

    def bytes_bar(self, path: Path, about: str) -> "tqdm[Any]":
        """A bar over the bytes of a file; open-ended where they are compressed."""
        return self.bar(None if path.suffix == ".gz" else path.stat().st_size, about)


def counted(counts: Mapping[str, int]) -> str:
    """Counts as a sentence has them: 4 lines, 3 words."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
