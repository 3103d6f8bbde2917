"""Lines of text from a file or standard input, and to a file or standard output."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from seqtk.utils.errors import UserError, naming, near_path


def read_lines(path: str) -> Iterator[str]:
    """The lines of the UTF-8 file at `path`, `-` for standard input, as they come.

    A line ends at `\\n` and nowhere else, so there are as many as `wc -l` says (and one more that does not end).
    Raises UserError for one that is not UTF-8, with its number.
    """
    with contextlib.ExitStack() as stack:
        if path == "-":
            binary = sys.stdin.buffer
        else:
            try:
                binary = stack.enter_context(open(path, "rb"))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise UserError(f"There is no text file {path}.", *near_path(Path(path), suits=Path.is_file)) from None
        for number, line in enumerate(binary, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(error, "standard input" if path == "-" else path, number) from None
            yield text.removesuffix("\n").removesuffix("\r")


@contextlib.contextmanager
def text_output(path: str) -> Iterator[TextIO]:
    """Where lines are written: the UTF-8 file at `path`, whole or not there at all; `-` is standard output."""
    if path == "-":
        # Whatever the locale says, text is UTF-8.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout
        sys.stdout.flush()
        return
    temporary = Path(f"{path}.partial-{os.getpid()}")
    if not temporary.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {temporary.parent}.")
    if Path(path).is_dir():
        raise UserError(f"{path} cannot be written: it is a folder.")
    try:
        file = open(temporary, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with naming(path), file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def not_utf8(error: UnicodeDecodeError, path: Path | str, line: int) -> UserError:
    """What is said of a line that is not UTF-8."""
    return UserError(
        f"Line {line:,} of {path} is not UTF-8: {error.reason} {error.object[error.start : error.start + 1]!r}.",
        "Convert the file, for example with iconv -f latin1 -t utf-8.",
    )
