"""Writes files and folders atomically, with clear errors if the disk is full or read-only."""

import errno
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from seqtk.utils.errors import UserError, naming

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/", "/dev/stdout", "/dev/stderr")
_NUMBERS = itertools.count()


@contextmanager
def disk_full_errors(path: Path) -> Iterator[None]:
    """Context manager that converts a disk-full error in writing `path` into a UserError with the free space."""
    try:
        with naming(path):
            yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        folder = _existing(path.absolute().parent)
        raise UserError(
            f"{error.filename} does not fit on the disk: {error.strerror}.",
            f"{shutil.disk_usage(folder).free:,} bytes are free in {folder}.",
            "Free some space, then run the same command again.",
        ) from None


@contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Context manager that yields a file, which replaces `path` at the end. After an exception, `path` is unchanged.

    If `path` is a symbolic link, the file that it points to is replaced. A pipe, a device or an open file
    (`/dev/stdout`, `/dev/fd/3`) is written to directly. A new file has the permissions of the umask. An existing file
    keeps its permissions.

    Args:
        path: The file to write.
        mode, options: The arguments of `open`.

    Raises:
        UserError: If the folder is missing, `path` is a folder or may not be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    direct = is_special(Path(path)) or os.path.abspath(path).startswith(_DESCRIPTORS)
    with ExitStack() as stack:
        try:
            if direct:
                file = open(path, mode, **options)  # noqa: SIM115
            else:
                partial = _partial_file(target)
                stack.callback(_without_error, partial.unlink)
                file = open(partial, mode, **options)  # noqa: SIM115
        except OSError as error:
            reason = error.strerror if target.parent.is_dir() else f"there is no folder {Path(path).parent}"
            raise UserError(f"{path} cannot be written: {reason}.") from None
        stack.callback(_without_error, file.close)  # normally, the file is closed below, where errors are reported
        with disk_full_errors(Path(path)):
            yield file
            file.close()
            if not direct:
                with suppress(FileNotFoundError):
                    shutil.copymode(target, partial)  # an existing file keeps its permissions
                os.replace(partial, target)


@contextmanager
def atomic_files(paths: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """Context manager that yields files, which replace `paths` at the end. After an exception, all paths are unchanged.

    The files are binary. Missing folders are created.
    """
    with ExitStack() as stack:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield [stack.enter_context(atomic_file(path)) for path in paths]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic_file(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextmanager
def atomic_directory(destination: Path, *, only: Sequence[str] = ()) -> Iterator[Path]:
    """Context manager that yields a temporary folder. At the end, its content is moved to `destination`.

    After an exception, `destination` is unchanged and no new folder is left.

    Args:
        destination: The folder, which is replaced if it exists. A symbolic link to a folder is kept.
        only: Patterns of file names. If given, only files in the folder that match are replaced; other files are kept.
            Files that match the first pattern are removed first and written last, so they mark a complete folder.
    """
    target = Path(os.path.realpath(destination))
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    partial = target / ".partial" if only else partial_directory(destination)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_full_errors(destination):
            partial.mkdir(parents=True)
            yield partial
            if only:
                _replace_files(partial, target, only)
            else:
                shutil.rmtree(target, ignore_errors=True)
                os.replace(partial, target)
        made = []
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # another process may have created files there
                folder.rmdir()


def partial_directory(destination: Path) -> Path:
    """Returns the temporary folder of `atomic_directory`, for other processes that write into it."""
    target = Path(os.path.realpath(destination))
    return target.with_name(f"{target.name}.partial")


def check_writable(folder: Path, *, key: str) -> None:
    """Raises UserError unless `folder`, which need not exist, can be created and written. Leaves no file."""
    there = _existing(folder.absolute())
    try:
        with tempfile.TemporaryDirectory(prefix=".seqtk-", dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{key}={folder} cannot be written.",
            f"Cannot create a file in {there}: {error.strerror}.",
            f"Set {key}= to a different folder.",
        ) from None


def is_special(path: Path) -> bool:
    """Returns True if `path` exists and is a pipe, a device or a socket."""
    with suppress(OSError):
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _existing(path: Path) -> Path:
    """Returns the closest ancestor of `path` that exists, or `path` itself."""
    return next(place for place in (path, *path.parents) if os.path.exists(place))


def _without_error(function: Callable[[], None]) -> None:
    """Calls a cleanup function after an error. Ignores its OSError, which would replace the first error."""
    with suppress(OSError):
        function()


def _partial_file(target: Path) -> Path:
    """Returns the path of the temporary file that replaces `target`. Raises OSError if `target` may not be replaced."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    name = b".%b.partial-%d-%d" % (os.fsencode(target.name)[:200], os.getpid(), next(_NUMBERS))
    return target.with_name(os.fsdecode(name))


def _replace_files(partial: Path, target: Path, patterns: Sequence[str]) -> None:
    for old in [path for pattern in patterns for path in sorted(target.glob(pattern))]:
        old.unlink()
    new = sorted(partial.iterdir(), key=lambda path: (path.match(patterns[0]), path.name))
    for path in new:
        os.replace(path, target / path.name)
