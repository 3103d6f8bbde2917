"""Writes the texts of a corpus from published files, and cleans training text.

Only `\\n` ends a line. All lines of validation and test text are kept. Training pairs with an empty side, or
with bytes that are not UTF-8, are dropped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from seqtk.data.corpus import check_equal, check_text, chunks, read_blocks, split_lines
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_files
from seqtk.utils.progress import Reporter, format_counts
from seqtk.utils.text_io import open_decompressed

# Control characters and invisible separators: U+0080 to U+009F, U+2028, U+2029, U+FEFF.
_CONTROL = bytes(byte if byte == ord("\n") or 0x20 <= byte != 0x7F else 0x20 for byte in range(256))
_WIDE_CONTROL = re.compile(rb"\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]|\xef\xbb\xbf")
_KEPT_OR_NOT = ("pairs", "not_utf8", "empty", "kept")
_SEGMENT = re.compile(rb"<seg\b[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)
_ENTITIES = ((b"&lt;", b"<"), (b"&gt;", b">"), (b"&quot;", b'"'), (b"&apos;", b"'"), (b"&amp;", b"&"))


@dataclass(frozen=True)
class _FromOne:
    """Base class of texts that are made from one published file."""

    name: str
    source: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the files that `write` writes."""
        return (self.name,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the published files that `write` reads."""
        return (self.source,)


@dataclass(frozen=True)
class Part(_FromOne):
    """A text that is a range of bytes of one published file."""

    start: int
    length: int

    def write(self, inputs: Mapping[str, Path], outputs: Sequence[Path], *, reporter: Reporter) -> dict[str, int]:
        """Copies the range of bytes."""
        left = self.length
        bar = reporter.bar(self.length, f"writing {self.name}")
        with open_decompressed(inputs[self.source]) as file, atomic_files(outputs) as (output,), bar:
            file.seek(self.start)
            while left and (chunk := file.read(min(left, 1 << 20))):
                output.write(chunk)
                bar.update(len(chunk))
                left -= len(chunk)
            if left:
                raise UserError(f"{inputs[self.source]} is too short: {self.name} requires {left:,} more bytes.")
        return {"bytes": self.length}


@dataclass(frozen=True)
class Lines(_FromOne):
    """A text that consists of the lines of one published file, or of its segments if it is SGML."""

    lines: int | None = None
    """The published number of lines, or None."""

    def write(self, inputs: Mapping[str, Path], outputs: Sequence[Path], *, reporter: Reporter) -> dict[str, int]:
        """Copies and counts the lines. Raises UserError if their number is not the published number."""
        path = inputs[self.source]
        sgml = path.name.removesuffix(".gz").endswith(".sgm")
        lines, size, last = 0, 0, b"\n"
        with (
            atomic_files(outputs) as (output,),
            open_decompressed(path) as file,
            reporter.bytes_bar(path, f"writing {self.name}") as bar,
        ):
            for chunk in _segments(b"".join(chunks(file, path))) if sgml else chunks(file, path):
                output.write(chunk)
                bar.update(len(chunk))
                lines, size, last = lines + chunk.count(b"\n"), size + len(chunk), chunk[-1:]
            lines += last != b"\n"
            if self.lines not in (None, lines):
                raise UserError(
                    f"{path} differs from the published {self.source}.",
                    f"It has {lines:,} {'segments' if sgml else 'lines'}, not {self.lines:,}.",
                )
        return {"lines": lines, "bytes": size}


@dataclass(frozen=True)
class Pairs:
    """A parallel text from several published files, cleaned."""

    names: tuple[str, str]
    sources: tuple[tuple[str, str], ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the files that `write` writes."""
        return self.names

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the published files that `write` reads."""
        return tuple(name for pair in self.sources for name in pair)

    def write(self, inputs: Mapping[str, Path], outputs: Sequence[Path], *, reporter: Reporter) -> dict[str, int]:
        """Cleans and copies the pairs. Returns the numbers of pairs that were read, dropped and kept."""
        total = dict.fromkeys(_KEPT_OR_NOT, 0)
        with atomic_files(outputs) as files:
            for pair in self.sources:
                paths = [inputs[name] for name in pair]
                lines = [check_text(path, utf8=False) for path in paths]
                check_equal(paths, lines)
                counts = dict.fromkeys(_KEPT_OR_NOT, 0)
                with reporter.bar(lines[0], f"cleaning {pair[0]}", unit=" pairs") as bar:
                    for blocks in read_blocks(paths):
                        before = counts["pairs"]
                        kept = _clean_pairs([split_lines(block) for block in blocks], counts)
                        for file, side in zip(files, kept, strict=True):
                            file.write(side)
                        bar.update(counts["pairs"] - before)
                reporter.notify(f"  {pair[0]}: {format_counts(counts)}")
                total = {name: total[name] + count for name, count in counts.items()}
        return total


def _clean_pairs(blocks: Sequence[list[bytes]], counts: dict[str, int]) -> tuple[bytes, ...]:
    """Returns the text of both sides of the pairs that are kept. Updates `counts`."""
    good = [_decodes(lines) for lines in blocks]
    sides = [clean(lines) for lines in blocks]
    decodes = list(map(all, zip(*good, strict=True)))
    filled = list(map(all, zip(*sides, strict=True)))
    keep = [is_text and has_text for is_text, has_text in zip(decodes, filled, strict=True)]
    counts["pairs"] += len(keep)
    counts["not_utf8"] += len(keep) - sum(decodes)
    counts["empty"] += sum(decodes) - sum(keep)
    counts["kept"] += sum(keep)
    return tuple(b"".join(line + b"\n" for line in compress(side, keep)) for side in sides)


def clean(lines: Sequence[bytes]) -> list[bytes]:
    """Strips lines, and replaces each sequence of white space and control characters by one space."""
    text = b"".join(lines).translate(_CONTROL)
    text = text if text.endswith(b"\n") else text + b"\n"
    if not text.isascii():
        text = _WIDE_CONTROL.sub(b" ", text)
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text.replace(b" \n", b"\n").replace(b"\n ", b"\n").removeprefix(b" ").split(b"\n")[:-1]


def _decodes(lines: Sequence[bytes]) -> list[bool]:
    """Returns True for each line that is UTF-8, else False."""
    if _is_utf8(b"".join(lines)):
        return [True] * len(lines)
    return list(map(_is_utf8, lines))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _segments(text: bytes) -> Iterator[bytes]:
    """Yields the segments of an SGML file of WMT, one line each. It is not valid SGML, so no parser is used."""
    for segment in _SEGMENT.findall(text):
        line = b" ".join(segment.split())
        for entity, character in _ENTITIES:
            line = line.replace(entity, character)
        yield line + b"\n"
