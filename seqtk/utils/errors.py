"""Errors that a user can fix, and helpers for error messages.

Any other exception is a bug in seqtk and keeps its traceback.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can fix, in at most three lines: the problem, its cause or value, the fix.

    Empty lines are removed.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(line for line in lines if line))


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager that adds `path` to an OSError without a file name, such as the error of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def how_many(count: int, noun: str) -> str:
    """Returns a count with its noun: 1 line, 2,000 lines, 3 classes."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an exception of Python or torch is an out-of-memory error of a CPU or a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "cannot allocate memory",
    "storage size calculation overflowed",
    "integer multiplication overflow",
)
