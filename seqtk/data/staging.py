"""A data-bin directory appears complete or not at all, and never in the place of another one by mistake."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seqtk.utils.errors import UserError, naming
from seqtk.utils.files import check_writable

_DICTIONARIES = ("dict.txt", "dict.*.txt")
_OTHERS = (
    "*.idx",
    "*.bin",
    "valid*.txt",
    "test*.txt",
    "sentencepiece.model",
    "sentencepiece.*.model",
    "preprocess.json",
    "preprocess.log",
)


def refuse_overwriting(destination: Path, *, overwrite: bool) -> None:
    """Raises UserError if `destination` is a file or cannot be written, or holds a data-bin that is not to go."""
    if destination.exists() and not destination.is_dir():
        raise UserError(f"destdir={destination} is a file, not a directory.")
    if not overwrite and _files_of_databin(destination):
        raise UserError(
            f"There is a data-bin in {destination} already.",
            "Choose another destdir=, or replace it with overwrite=true.",
        )
    check_writable(destination, key="destdir")


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A directory to write in. At the end its files move to `destination`; after an exception nothing is left.

    What an earlier data-bin left there goes first, dictionaries before all else, and the new dictionaries come last:
    a directory in between has none and is not taken for a data-bin. Other files there are left alone.
    """
    created = not destination.exists()
    staging = destination / ".partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with naming(destination):
            yield staging
        for old in _files_of_databin(destination):
            old.unlink()
        for new in sorted(staging.iterdir(), key=lambda path: (path.name.startswith("dict."), path.name)):
            os.replace(new, destination / new.name)
        created = False
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if created:
            with suppress(OSError):  # something else may have been put there meanwhile
                destination.rmdir()


def _files_of_databin(directory: Path) -> list[Path]:
    """The files of the data-bin in a directory, its dictionaries first; none if there is no data-bin in it."""
    return [path for pattern in (*_DICTIONARIES, *_OTHERS) for path in sorted(directory.glob(pattern))]
