"""Every count of a preprocessing run, as a table to read and as JSON to keep."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from seqtk.data.filters import RULES
from seqtk.data.word_lookup import count_words


@dataclass(frozen=True)
class SideCount:
    """What one language of a split has: ids with eos, and how many of them are unknown."""

    tokens: int
    unknown: int


@dataclass(frozen=True)
class TextCount:
    """How large the text itself is, whatever its tokens: all of its lines, with their line feeds."""

    lines: int = 0
    bytes: int = 0
    characters: int = 0
    """Unicode code points."""
    words: int = 0
    """What stands between white space."""

    def __add__(self, other: "TextCount") -> "TextCount":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return TextCount(*(one + another for one, another in pairs))


def count_text(lines: Sequence[bytes]) -> TextCount:
    """The size of some lines of UTF-8."""
    text = np.frombuffer(b"".join(lines), dtype=np.uint8)
    characters = int(np.count_nonzero((text & 0xC0) != 0x80))  # the first byte of each
    return TextCount(len(lines), len(text), characters, count_words(lines))


@dataclass(frozen=True)
class SplitCount:
    """What became of a split: lines read, items written, lines dropped by each rule, and each language's counts."""

    lines: int
    items: int
    dropped: dict[str, int]
    sides: dict[str, SideCount]
    text: TextCount | None = None
    """Of one-sided text, for figures that do not depend on its tokens."""


@dataclass(frozen=True)
class Report:
    """The size of each language's vocabulary, special symbols included, and the counts of each split."""

    vocabulary: dict[str, int]
    splits: dict[str, SplitCount]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """The counts in aligned columns, a row for each language of each split."""
        rows = [["split", "lang", "lines", *(rule.replace("_", " ") for rule in RULES), "kept", "tokens", "unknown"]]
        for name, split in self.splits.items():
            for lang, side in split.sides.items():
                dropped = [f"{split.dropped.get(rule, 0):,}" for rule in RULES]
                share = f"{side.unknown:,} ({side.unknown / max(1, side.tokens):.2%})"
                rows.append([name, lang, f"{split.lines:,}", *dropped, f"{split.items:,}", f"{side.tokens:,}", share])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        sizes = ", ".join(f"{lang} {size:,}" for lang, size in self.vocabulary.items())
        for name, split in self.splits.items():
            if (text := split.text) is not None:
                lines.append(f"{name}: {text.words:,} words, {text.characters:,} characters, {text.bytes:,} bytes")
        return "\n".join([*lines, f"vocabulary: {sizes} (special symbols included)"])
