"""Reads UTF-8 lines from files, pipes or standard input, plain or compressed, and opens text files for writing.

Only `\\n` ends a line, so the number of lines equals `wc -l` (plus one if the last line has no line feed).
"""

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO, cast

from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file
from seqtk.utils.suggestions import near_path

BOM = b"\xef\xbb\xbf"
SUFFIXES = ("", ".gz", ".bz2", ".xz")
"""The file extensions of compressed text files, and an empty one for plain text files."""

_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_NOT_TEXT = {
    b"\x28\xb5\x2f\xfd": ("compressed by zstd, which is not supported", "Decompress it first: zstd -d."),
    b"PK\x03\x04": ("a zip archive, not a text", "Unpack it first: unzip."),
    b"\xff\xfe": ("UTF-16 or UTF-32 text, not UTF-8", "Convert it first: iconv -f utf-16 -t utf-8."),
    b"\xfe\xff": ("UTF-16 text, not UTF-8", "Convert it first: iconv -f utf-16 -t utf-8."),
    b"\x00\x00\xfe\xff": ("UTF-32 text, not UTF-8", "Convert it first: iconv -f utf-32 -t utf-8."),
}
_HEAD = max(map(len, (*_OPENERS, *_NOT_TEXT)))


def read_lines(path: str) -> Iterator[str]:
    """Yields the lines of the UTF-8 file at `path` (`-`: standard input), without line ends, as they arrive.

    The file may be a pipe or a device, and may be compressed. A byte-order mark and `\\r` before `\\n` are removed.

    Raises:
        UserError: If there is no such file, or it is not text. The error gives the number of a line that is not UTF-8.
    """
    name = _name_of(path)
    for number, line in enumerate(read_raw_lines(path), start=1):
        yield decode_line(line, name, number)


def read_raw_lines(path: str) -> Iterator[bytes]:
    """Like `read_lines`, but yields lines as bytes with their line ends. They are not checked (see `decode_line`)."""
    name = _name_of(path)
    with contextlib.ExitStack() as stack:
        if path == "-":
            file = _decompressed(sys.stdin.buffer, name)
        else:
            file = stack.enter_context(open_decompressed(Path(path)))
        stack.enter_context(decompression_errors(name))
        lines = iter(file)
        yield from (line.removeprefix(BOM) for line in itertools.islice(lines, 1))
        yield from lines


def decode_line(line: bytes, name: str, number: int) -> str:
    """Returns a line of a UTF-8 file without its line end. Raises UserError if it is not UTF-8 text."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        check_utf8(line, name, number)  # raises the error
    return text.removesuffix("\n").removesuffix("\r")


def _name_of(path: str) -> str:
    return "standard input" if path == "-" else path


def open_text(path: Path) -> IO[bytes]:
    """Opens a text file to read bytes, decompressed and without a byte-order mark at its start."""
    file: Any = open_decompressed(path)
    with decompression_errors(path):
        if file.peek(len(BOM))[: len(BOM)] == BOM:
            file.read(len(BOM))
    opened: IO[bytes] = file
    return opened


def open_decompressed(path: Path) -> IO[bytes]:
    """Opens a file to read bytes. gzip, bzip2 and xz are detected by content, not by extension, and decompressed.

    Raises UserError if there is no such file, or its format or encoding is not supported.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a text file.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no text file {path}.", *near_path(path, suits=Path.is_file)) from None
    try:
        opened: IO[bytes] = _decompressed(file, path)
        return opened
    except BaseException:
        file.close()
        raise


def _decompressed(file: Any, name: Path | str) -> Any:
    """Returns `file`, or a decompressing reader of it, depending on its first bytes."""
    if not isinstance(file, io.BufferedReader):  # standard input in a test or a notebook
        return file
    head = file.peek(_HEAD)[:_HEAD]
    for magic, (what, fix) in _NOT_TEXT.items():
        if head.startswith(magic):
            raise UserError(f"{name} is {what}.", fix)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        return file
    opened = opener(file, "rb")
    if isinstance(name, Path):  # closing the reader then closes `file`, as if it were opened by name
        vars(opened).update({"myfileobj": file} if opener is gzip.open else {"_closefp": True})
    return opened


@contextlib.contextmanager
def decompression_errors(name: Path | str) -> Iterator[None]:
    """Context manager that converts exceptions about damaged compressed data into a UserError with the file name."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _incomplete(name, error) from None
    except OSError as error:
        if error.errno is None:  # bz2 raises this for invalid data
            raise _incomplete(name, error) from None
        raise


def _incomplete(name: Path | str, error: Exception) -> UserError:
    return UserError(f"{name} is damaged or incomplete: {error}.", "Download or compress it again.")


@contextlib.contextmanager
def text_output(path: str) -> Iterator[TextIO]:
    """Context manager that yields a UTF-8 text file to write: standard output for `-`, otherwise an `atomic_file`."""
    if path != "-":
        with atomic_file(path, "w", encoding="utf-8", newline="\n") as output:
            yield cast("TextIO", output)
        return
    if isinstance(sys.stdout, io.TextIOWrapper):  # regardless of the locale
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    yield sys.stdout
    sys.stdout.flush()


def check_utf8(block: bytes, name: Path | str, first_line: int) -> None:
    """Raises UserError with the number of the first line that is not UTF-8 or contains a NUL byte.

    Args:
        block: Whole lines of text.
        name: The file, for the error.
        first_line: The number of the first line of `block` in the file.
    """
    if not block.isascii():
        try:
            block.decode("utf-8")
        except UnicodeDecodeError as error:
            line = first_line + block.count(b"\n", 0, error.start)
            raise UserError(
                f"Line {line:,} of {name} is not UTF-8: {error.reason} {block[error.start : error.start + 1]!r}.",
                "Convert the file, for example: iconv -f latin1 -t utf-8.",
            ) from None
    if b"\0" in block:
        line = first_line + block.count(b"\n", 0, block.index(b"\0"))
        raise UserError(
            f"Line {line:,} of {name} contains a NUL byte, so it is not text.",
            "If the file is UTF-16, convert it: iconv -f utf-16 -t utf-8. Otherwise, remove NUL bytes: tr -d '\\000'.",
        )
