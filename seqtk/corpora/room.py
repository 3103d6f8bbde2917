"""Files that appear whole or not at all, and what is said when they do not fit on the disk."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from seqtk.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Turns a disk that is full while `path` is written into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path} does not fit: {error.strerror}.",
            f"{free:,} bytes are free in {path.parent}.",
            "Make room, then run the same command again: it goes on where it was.",
        ) from None


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """Files to write. They get their names at the end, all of them; after an exception none is left."""
    partial = [path.with_name(f"{path.name}.partial") for path in paths]
    try:
        with room(paths[0]):
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                yield [stack.enter_context(open(path, "wb")) for path in partial]
            for written, path in zip(partial, paths, strict=True):
                os.replace(written, path)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
