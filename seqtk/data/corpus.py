"""Raw text files: found, checked, and read in blocks of whole lines, so that memory does not grow with the corpus.

A line ends at `\\n` and nowhere else. A block is the bytes of some whole lines, as they stand in the file.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from seqtk.utils.errors import UserError, near_path
from seqtk.utils.text_io import not_utf8

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TextConfig:
    """Which text to read: a prefix for each split, and a file for each language behind it."""

    source_lang: str | None = None  # the text is PREFIX.source_lang; without languages it is PREFIX itself
    target_lang: str | None = None  # leave it out for one-sided text, as for a language model
    train: str | None = None  # prefix of the training text; files are plain or .gz
    valid: tuple[str, ...] = ()  # prefixes of the validation texts, in order: valid, valid1, …
    test: tuple[str, ...] = ()  # prefixes of the test texts, in order: test, test1, …

    @property
    def langs(self) -> tuple[str | None, ...]:
        """The languages of the data-bin, source first; a single None for one-sided text."""
        return (self.source_lang, self.target_lang) if self.target_lang else (None,)

    def prefixes(self) -> dict[str, str]:
        """Each split's name → the prefix of its text."""
        named = {"train": self.train} if self.train else {}
        for name, given in (("valid", self.valid), ("test", self.test)):
            each = [prefix for item in given for prefix in item.split(",") if prefix]
            named |= {f"{name}{number or ''}": prefix for number, prefix in enumerate(each)}
        return named

    def files(self) -> dict[str, tuple[Path, ...]]:
        """Each split's name → its files, in the order of the languages. Raises UserError if one is missing."""
        if self.target_lang and not self.source_lang:
            raise UserError("target_lang= needs source_lang=.", "For one-sided text give source_lang= alone.")
        if self.target_lang and self.target_lang == self.source_lang:
            raise UserError(f"source_lang= and target_lang= are both '{self.source_lang}'.")
        sides = (self.source_lang,) if self.target_lang is None else (self.source_lang, self.target_lang)
        for prefix in self.prefixes().values() if sides == (None,) else ():
            _refuse_pairs(prefix)
        found = {name: tuple(find_text(prefix, side) for side in sides) for name, prefix in self.prefixes().items()}
        if not found:
            raise UserError("There is no text to read: set train=, valid= or test= to the prefix of its files.")
        return found


@dataclass(frozen=True)
class Text:
    """One split's files, one for each language, and how many lines each of them has."""

    name: str
    paths: tuple[Path, ...]
    lines: int


def _refuse_pairs(prefix: str) -> None:
    """Raises UserError if `prefix` is no text, but the beginning of the names of several."""
    path = Path(prefix)
    if path.is_file() or Path(f"{prefix}.gz").is_file() or not path.parent.is_dir():
        return
    names = sorted(other.name for other in path.parent.iterdir() if other.name.startswith(f"{path.name}."))
    if len(names) > 1:
        raise UserError(
            f"There is no text {prefix}, but there are {names[0]} and {names[1]}.",
            "For a parallel corpus set source_lang= and target_lang=.",
        )


def find_text(prefix: str, lang: str | None) -> Path:
    """The file of one side of a corpus: `prefix.lang` (just `prefix` without a language), or the same with `.gz`."""
    name = f"{prefix}.{lang}" if lang else prefix
    for path in (Path(name), Path(f"{name}.gz")):
        if path.is_file():
            return path
    near = near_path(Path(name), suits=Path.is_file, ending=".gz")
    raise UserError(f"There is no text {name} (nor {name}.gz).", *near)


def check_text(path: Path, utf8: bool = True) -> int:
    """The number of lines of a file, once all of it was found readable and, unless `utf8` is false, UTF-8."""
    if not utf8:
        return _count_lines(path)
    lines = 0
    rest = b""
    with open_text(path) as file:
        while chunk := read_chunk(file, path):
            lines += _check_utf8(rest + chunk[: chunk.rfind(b"\n") + 1], path, lines) if b"\n" in chunk else 0
            rest = chunk[chunk.rfind(b"\n") + 1 :] if b"\n" in chunk else rest + chunk
    _check_utf8(rest, path, lines)
    return lines + bool(rest)


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with open_text(path) as file:
        while chunk := read_chunk(file, path):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return lines + (last != b"\n")


def check_equal(paths: Sequence[Path], lines: Sequence[int]) -> None:
    """Both sides of a corpus have the same number of lines, or a UserError states both numbers."""
    if len(set(lines)) > 1:
        raise UserError(
            "The two sides of the corpus do not have the same number of lines:",
            ", ".join(f"{path} has {count:,}" for path, count in zip(paths, lines, strict=True)) + ".",
            r"Line n of one must be the translation of line n of the other; lines end at \n only.",
        )


def open_text(path: Path) -> IO[bytes]:
    """A text file for reading bytes, decompressed where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def read_blocks(paths: Sequence[Path], *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[list[bytes], ...]]:
    """Blocks of the same lines of each file: about `block_bytes` of the first one, with the other ones' lines."""
    with ExitStack() as stack:
        first, *others = [stack.enter_context(open_text(path)) for path in paths]
        while lines := first.readlines(block_bytes):
            yield lines, *(list(islice(other, len(lines))) for other in others)


def sample_lines(paths: Sequence[Path], *, lines: int, most: int) -> Iterator[bytes]:
    """The lines of files that have `lines` together, without their ends: `most` at regular distances, if more."""
    step = max(1, -(-lines // most))
    for path in paths:
        with open_text(path) as file:
            for line in islice(file, 0, None, step):
                yield line.rstrip(b"\r\n")


def read_chunk(file: IO[bytes], path: Path) -> bytes:
    """The next bytes of a file that `open_text` opened; none at its end. Raises UserError if it is broken gzip."""
    try:
        return file.read(BLOCK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}.", "Download or compress it again.") from None


def _check_utf8(block: bytes, path: Path, lines_before: int) -> int:
    """The number of line ends in a block of whole lines. Raises UserError naming the line that is not UTF-8."""
    if not block.isascii():
        try:
            block.decode("utf-8")
        except UnicodeDecodeError as error:
            line = lines_before + block.count(b"\n", 0, error.start) + 1
            raise not_utf8(error, path, line) from None
    return block.count(b"\n")
