"""Finds and checks raw text files, and reads them in blocks of whole lines, so memory does not grow with the corpus.

Only `\\n` ends a line. A block is a bytes object that contains whole lines.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from seqtk.config.fields import setting
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import near_path
from seqtk.utils.text_io import SUFFIXES, check_utf8, decompression_errors, open_decompressed, open_text

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TextConfig:
    """Settings of the text files of each split. A file is named PREFIX.LANGUAGE, or PREFIX for monolingual text."""

    source_lang: str | None = setting(
        None, help="Source language, the suffix of the file: PREFIX.LANGUAGE. null: the file is PREFIX itself."
    )
    target_lang: str | None = setting(None, help="Target language. null: monolingual text, for a language model.")
    train: str | None = setting(
        None, help="Prefix of the training text. Files are UTF-8, plain or compressed (.gz, .bz2, .xz)."
    )
    valid: tuple[str, ...] = setting(
        (), help="Prefixes of the validation texts, separated by commas. They become valid, valid1 and so on."
    )
    test: tuple[str, ...] = setting(
        (), help="Prefixes of the test texts, separated by commas. They become test, test1 and so on."
    )

    @property
    def langs(self) -> tuple[str | None, ...]:
        """The languages of the data-bin, source first. For monolingual text, a single None."""
        return (self.source_lang, self.target_lang) if self.target_lang else (None,)

    @property
    def _sides(self) -> tuple[str | None, ...]:
        return self.langs if self.target_lang else (self.source_lang,)

    def prefixes(self) -> dict[str, str]:
        """Returns a dict from the name of each split to its prefix.

        Commas separate prefixes, unless a file with commas in its name exists.
        """
        named = {"train": self.train} if self.train else {}
        for name, given in (("valid", self.valid), ("test", self.test)):
            parts = [[item] if _find(item, self._sides[0]) else item.split(",") for item in given]
            prefixes = [prefix for item in parts for prefix in item if prefix]
            named |= {f"{name}{number or ''}": prefix for number, prefix in enumerate(prefixes)}
        return named

    def files(self) -> dict[str, tuple[Path, ...]]:
        """Returns the files of each split, in the order of the languages. Raises UserError if a file is missing."""
        if self.target_lang and not self.source_lang:
            raise UserError("target_lang= requires source_lang=.", "For monolingual text, set only source_lang=.")
        if self.target_lang and self.target_lang == self.source_lang:
            raise UserError(f"source_lang= and target_lang= are both '{self.source_lang}'.", "Set two languages.")
        found = {
            name: tuple(find_text(prefix, side, key=name.rstrip("0123456789")) for side in self._sides)
            for name, prefix in self.prefixes().items()
        }
        if not found:
            raise UserError("No text file is set.", "Set train=, valid= or test= to the prefix of text files.")
        return found


@dataclass(frozen=True)
class Text:
    """The files of a split, one for each language, and the number of lines of each file."""

    name: str
    paths: tuple[Path, ...]
    lines: int


def find_text(prefix: str, lang: str | None, *, key: str = "input") -> Path:
    """Returns the path of a text file, plain or compressed: `prefix.lang`, or `prefix` if `lang` is None.

    Raises UserError if the file is missing. The error names similar files and `key`, the setting that has `prefix`.
    """
    path = _find(prefix, lang)
    if path is not None:
        return path
    name = Path(f"{prefix}.{lang}" if lang else prefix)
    if name.is_fifo() or name.is_char_device():
        raise UserError(
            f"{key}={name} is a pipe or a device, which cannot be read twice.", "Save its content to a file."
        )
    existing = languages_of(prefix)
    stem, _, ending = prefix.removesuffix(".gz").rpartition(".")
    if lang and Path(prefix).is_file() and stem and _find(stem, lang) is not None:
        raise UserError(f"There is no text file {name}.", f"Set the prefix, without .{ending}: {key}={stem}")
    if lang and existing:
        raise UserError(
            f"There is no text file {name}.",
            f"Files {prefix}.LANGUAGE exist for these languages: {', '.join(existing)}.",
            "Set source_lang= and target_lang= to two of these languages.",
        )
    if not lang and len(existing) > 1:
        raise UserError(
            f"There is no text file {name}, but there are {name.name}.{existing[0]} and {name.name}.{existing[1]}.",
            f"For a parallel corpus, set source_lang={existing[0]} target_lang={existing[1]}.",
        )
    endings = ", ".join(SUFFIXES[1:])
    near = near_path(name, suits=Path.is_file)
    raise UserError(f"There is no text file {name}, plain or compressed ({endings}).", *near)


def languages_of(prefix: str) -> list[str]:
    """Returns the suffixes of the files whose names begin with `prefix` and a dot, without compression suffixes."""
    path, found = Path(prefix), set()
    if path.parent.is_dir():
        for other in path.parent.iterdir():
            name = other.name
            for suffix in SUFFIXES[1:]:
                name = name.removesuffix(suffix)
            if name.startswith(f"{path.name}.") and other.is_file():
                found.add(name.removeprefix(f"{path.name}."))
    return sorted(found)


def _find(prefix: str, lang: str | None) -> Path | None:
    paths = (Path(f"{prefix}.{lang}{suffix}" if lang else f"{prefix}{suffix}") for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def check_text(path: Path, utf8: bool = True) -> int:
    """Checks that a file is readable and, unless `utf8` is false, UTF-8 without NUL bytes. Returns its number of lines.

    Raises UserError if a check fails.
    """
    lines, rest = 0, b""
    with open_text(path) if utf8 else open_decompressed(path) as file:
        for chunk in chunks(file, path):
            end = chunk.rfind(b"\n") + 1
            if utf8 and end:
                check_utf8(rest + chunk[:end], path, lines + 1)
            rest = chunk[end:] if end else rest + chunk if utf8 else chunk[-1:]
            lines += chunk.count(b"\n")
    if utf8:
        check_utf8(rest, path, lines + 1)
        if not lines and rest.count(b"\r") > 2:
            raise UserError(
                f"The lines of {path} end in \\r only (old Mac OS).", "Convert the file: tr '\\r' '\\n' < IN > OUT."
            )
    return lines + bool(rest)


def check_equal(paths: Sequence[Path], lines: Sequence[int]) -> None:
    """Raises UserError if the two sides of a corpus have different numbers of lines."""
    if len(set(lines)) > 1:
        raise UserError(
            "The two sides of the corpus do not have the same number of lines:",
            ", ".join(f"{path} has {count:,}" for path, count in zip(paths, lines, strict=True)) + ".",
            r"Line n of one file must be the translation of line n of the other. Only \n ends a line.",
        )


def read_blocks(paths: Sequence[Path], *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[bytes, ...]]:
    """Yields tuples of blocks, one block of each file. The blocks of a tuple contain the same line numbers.

    The block of the first file has about `block_bytes` bytes.
    """
    with ExitStack() as stack:
        first, *others = [stack.enter_context(open_text(path)) for path in paths]
        while block := first.read(block_bytes) + first.readline():
            lines = count_lines(block)
            yield block, *(b"".join(islice(other, lines)) for other in others)


def split_lines(block: bytes) -> list[bytes]:
    """Returns the lines of a block, including their line ends."""
    return io.BytesIO(block).readlines()


def count_lines(block: bytes) -> int:
    """Returns the number of lines of a block. The last line may have no line feed."""
    return block.count(b"\n") + (block[-1:] not in (b"\n", b""))


def sample_lines(paths: Sequence[Path], *, lines: int, max_lines: int) -> Iterator[bytes]:
    """Yields the lines of files, or a sample of them, without line feeds.

    Args:
        paths: The files.
        lines: The total number of lines in the files.
        max_lines: The maximum number of lines to yield. If there are more, evenly spaced lines are chosen.
    """
    step = max(1, -(-lines // max_lines))
    for path in paths:
        with open_text(path) as file:
            for line in islice(file, 0, None, step):
                yield line.rstrip(b"\r\n")


def chunks(file: Any, path: Path) -> Iterator[bytes]:
    """Yields the bytes of an open file in parts. Raises UserError if it is compressed and damaged."""
    with decompression_errors(path):
        while chunk := file.read(BLOCK_BYTES):
            yield chunk
