"""Named members out of a zip or tar archive, each into the file that the caller names.

Nothing in an archive says where anything is written: its members' names are only compared with the wanted ones. Links
and devices under such a name are refused, all other members are passed over.
"""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from seqtk.corpora.spec import Check, Published
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_files
from seqtk.utils.progress import Reporter

_CHUNK_BYTES = 1 << 20
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError)

Copy = Callable[[Published, IO[bytes], int], None]


def unpack(archive: Path, targets: Mapping[Published, Path], *, reporter: Reporter) -> None:
    """Write each wanted member of `archive` to its path, checked. Raises UserError where one is not there."""
    wanted = {member.name: member for member in targets}

    def copy(member: Published, source: IO[bytes], size: int) -> None:
        check = Check(member)
        bar = reporter.bar(size, f"unpacking {member.file_name}")
        with atomic_files([targets[member]]) as (file,), bar, _naming(archive):
            if member.length not in (None, size):
                raise UserError(
                    f"{member.name} in {archive} is not as it was published:",
                    f"it has {size:,} bytes, not {member.length:,}.",
                    _advice(archive),
                )
            while chunk := source.read(_CHUNK_BYTES):
                check.add(chunk)
                file.write(chunk)
                bar.update(len(chunk))
            check.end(f"{member.name} in {archive}", _advice(archive))

    with _naming(archive):
        is_zip = zipfile.is_zipfile(archive)
        left = (_from_zip if is_zip else _from_tar)(archive, wanted, copy)
    if left:
        raise UserError(
            f"{archive} holds no {min(left)}.", "It is another archive, or only a part of this one.", _advice(archive)
        )


def _from_zip(archive: Path, wanted: Mapping[str, Published], copy: Copy) -> set[str]:
    """The wanted members that are not there, once the others were copied."""
    left = set(wanted)
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = info.filename.removeprefix("./")
            if name not in left:
                continue
            if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.flag_bits & 1:
                raise _no_file(archive, name)
            with opened.open(info) as source:
                copy(wanted[name], source, info.file_size)
            left.remove(name)
    return left


def _from_tar(archive: Path, wanted: Mapping[str, Published], copy: Copy) -> set[str]:
    """The same; nothing behind the last wanted member is read."""
    left = set(wanted)
    with tarfile.open(archive) as opened:
        for info in opened:
            name = info.name.removeprefix("./")
            if name not in left:
                continue
            source = opened.extractfile(info) if info.isreg() else None
            if source is None:
                raise _no_file(archive, name)
            copy(wanted[name], source, info.size)
            left.remove(name)
            if not left:
                break
    return left


@contextmanager
def _naming(archive: Path) -> Iterator[None]:
    """Turns what is wrong with an archive into a UserError that names it."""
    try:
        yield
    except _BROKEN as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{archive} is not a whole archive: {said}.", _advice(archive)) from None


def _no_file(archive: Path, name: str) -> UserError:
    return UserError(f"{name} in {archive} is no plain file.", "Nothing of it was written.", _advice(archive))


def _advice(archive: Path) -> str:
    return f"Remove {archive.name} and get it again."
