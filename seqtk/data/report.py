"""The counts of a preprocessing run, and a table of them."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from seqtk.data.corpus import count_lines
from seqtk.data.filters import RULES
from seqtk.data.vocabulary import SPECIALS
from seqtk.data.word_lookup import count_words
from seqtk.utils.errors import how_many

SYMBOLS = ", ".join(SPECIALS[:3])


@dataclass(frozen=True)
class SideCount:
    """The counts of one language of a split."""

    tokens: int
    """The number of tokens, including EOS."""
    unknown: int
    """The number of unknown tokens."""
    special: int = 0
    """The number of words that equal a special symbol, such as `<s>`."""


@dataclass(frozen=True)
class TextCount:
    """The size of a text, including line feeds. It does not depend on the tokenizer."""

    lines: int = 0
    bytes: int = 0
    characters: int = 0
    """The number of Unicode code points."""
    words: int = 0
    """The number of words, separated by white space."""

    def __add__(self, other: "TextCount") -> "TextCount":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return TextCount(*(one + another for one, another in pairs))


def count_text(block: bytes) -> TextCount:
    """Returns the size of a block of UTF-8 text."""
    return TextCount(count_lines(block), *text_size(block), count_words(block))


def text_size(block: bytes) -> tuple[int, int]:
    """Returns (bytes, characters) of a block of UTF-8 text."""
    is_first_byte = (np.frombuffer(block, dtype=np.uint8) & 0xC0) != 0x80
    return len(block), int(np.count_nonzero(is_first_byte))


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table as lines of text. The cells of a column are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


@dataclass(frozen=True)
class SplitCount:
    """The counts of one split.

    Attributes:
        lines: Lines read.
        items: Items written.
        dropped: Lines dropped by each rule.
        sides: The counts of each language.
        text: The size of monolingual text, for metrics such as bits per byte. None for pairs.
        kept: The size of the text that can be decoded from the tokens. (SentencePiece, for instance, merges spaces.)
            None if the whole text can be decoded.
    """

    lines: int
    items: int
    dropped: dict[str, int]
    sides: dict[str, SideCount]
    text: TextCount | None = None
    kept: TextCount | None = None


@dataclass(frozen=True)
class PreprocessReport:
    """The size of each language's vocabulary, including special symbols, and the counts of each split."""

    vocabulary: dict[str, int]
    splits: dict[str, SplitCount]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """Returns the counts as a table with one row for each language of each split."""
        rows = [["split", "lang", "lines", *(rule.replace("_", " ") for rule in RULES), "kept", "tokens", "unknown"]]
        for name, split in self.splits.items():
            for lang, side in split.sides.items():
                dropped = [f"{split.dropped.get(rule, 0):,}" for rule in RULES]
                share = f"{side.unknown:,} ({side.unknown / max(1, side.tokens):.2%})"
                rows.append([name, lang, f"{split.lines:,}", *dropped, f"{split.items:,}", f"{side.tokens:,}", share])
        lines = table_lines(rows)
        sizes = ", ".join(f"{lang} {size:,}" for lang, size in self.vocabulary.items())
        for name, split in self.splits.items():
            if (text := split.text) is not None:
                lines.append(f"{name}: {text.words:,} words, {text.characters:,} characters, {text.bytes:,} bytes")
            if (kept := split.kept) is not None:
                lines.append(
                    f"{name}: {kept.characters:,} characters, {kept.bytes:,} bytes can be decoded from the tokens; "
                    "bits per character and per byte are computed from these numbers"
                )
            for lang, side in split.sides.items():
                if side.special:
                    words = how_many(side.special, "word")
                    lines.append(
                        f"{name}, {lang}: {words} of the text equal special symbols ({SYMBOLS}), encoded as <unk>"
                    )
        return "\n".join([*lines, f"vocabulary: {sizes} (including special symbols)"])
