"""Files and directories that appear complete or not at all, and clear errors when the disk is full or read-only."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from seqtk.utils.errors import UserError, naming

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_full_errors(path: Path) -> Iterator[None]:
    """Turns a disk that is full while `path` is written into a UserError with the number of free bytes."""
    try:
        with naming(path):
            yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        free = shutil.disk_usage(_existing(path.absolute().parent)).free
        raise UserError(
            f"{path} does not fit on the disk: {error.strerror}.",
            f"{free:,} bytes are free in {path.absolute().parent}.",
            "Free some space, then run the same command again.",
        ) from None


@contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file to write that gets its name when the block ends; after an exception the old file is still there.

    Writes through a symbolic link to the file it names. A pipe or a device is written to directly, never replaced.
    A new file has the permissions of the umask, a replaced one keeps its own. `options` are those of `open`.
    """
    target = Path(os.path.realpath(path))
    with disk_full_errors(Path(path)):
        if is_special(target):
            with open(target, mode, **options) as file:
                yield file
            return
        partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        try:
            with open(partial, mode, **options) as file:
                yield file
            _take_over(partial, target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_files(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Binary files to write that all get their names when the block ends; after an exception none is left."""
    partial = [path.with_name(f"{path.name}.partial") for path in paths]
    try:
        with disk_full_errors(paths[0]):
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                yield [stack.enter_context(open(path, "wb")) for path in partial]
            for written, path in zip(partial, paths, strict=True):
                os.replace(written, path)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic_file(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextmanager
def atomic_directory(destination: Path) -> Iterator[Path]:
    """A directory to fill, which replaces `destination` when the block ends; after an exception nothing is left."""
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_full_errors(destination):
            partial.mkdir(parents=True)
            yield partial
        shutil.rmtree(destination, ignore_errors=True)
        os.replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_writable(folder: Path, *, key: str) -> None:
    """Raises UserError unless `folder`, which need not exist, can be created and written; leaves nothing behind."""
    there = _existing(folder.absolute())
    try:
        with tempfile.TemporaryDirectory(prefix=".seqtk-", dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{key}={folder} cannot be written.",
            f"Cannot create a file in {there}: {error.strerror}.",
            f"Set {key}= to another folder.",
        ) from None


def is_special(path: Path) -> bool:
    """Whether `path` exists and is a pipe, a device or a socket."""
    with suppress(OSError):
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _existing(path: Path) -> Path:
    """The closest ancestor of `path` that exists, or `path` itself."""
    return next(place for place in (path, *path.parents) if os.path.exists(place))


def _take_over(partial: Path, target: Path) -> None:
    """Moves `partial` to `target`; a file that is replaced passes on its permissions."""
    with suppress(FileNotFoundError):
        shutil.copymode(target, partial)
    os.replace(partial, target)
