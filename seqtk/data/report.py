"""Every count of a preprocessing run, as a table to read and as JSON to keep."""

from dataclasses import asdict, dataclass
from typing import Any

from seqtk.data.filters import RULES


@dataclass(frozen=True)
class SideCount:
    """What one language of a split has: ids with eos, and how many of them are unknown."""

    tokens: int
    unknown: int


@dataclass(frozen=True)
class SplitCount:
    """What became of a split: lines read, items written, lines dropped by each rule, and each language's counts."""

    lines: int
    items: int
    dropped: dict[str, int]
    sides: dict[str, SideCount]


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
        return "\n".join([*lines, f"vocabulary: {sizes} (special symbols included)"])
