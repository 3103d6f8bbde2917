"""Unpacks members of a zip or tar archive. The caller gives the names of the members and the paths to write.

For safety, names in an archive are only compared with the wanted names. They never determine the path of a file.
A link or device with a wanted name is an error. Other members are skipped.
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

from seqtk.corpora.spec import ChecksumVerifier, RemoteFile
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_files
from seqtk.utils.progress import Reporter

_CHUNK_BYTES = 1 << 20
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError)

Copy = Callable[[RemoteFile, IO[bytes], int], None]


def unpack(archive: Path, targets: Mapping[RemoteFile, Path], *, reporter: Reporter) -> None:
    """Writes each wanted member of `archive` to its path in `targets`, and checks its length and checksum.

    Raises UserError if a member is missing or differs from the published file.
    """
    wanted = {member.name: member for member in targets}

    def copy(member: RemoteFile, source: IO[bytes], size: int) -> None:
        check = ChecksumVerifier(member)
        bar = reporter.bar(size, f"unpacking {member.file_name}")
        with atomic_files([targets[member]]) as (file,), bar, damaged_archive_errors(archive):
            if member.length not in (None, size):
                raise UserError(
                    f"{member.name} in {archive} differs from the published file.",
                    f"It has {size:,} bytes, not {member.length:,}.",
                    _advice(archive),
                )
            while chunk := source.read(_CHUNK_BYTES):
                check.add(chunk)
                file.write(chunk)
                bar.update(len(chunk))
            check.end(f"{member.name} in {archive}", _advice(archive))

    with damaged_archive_errors(archive):
        is_zip = zipfile.is_zipfile(archive)
        left = (_from_zip if is_zip else _from_tar)(archive, wanted, copy)
    if left:
        raise UserError(
            f"{archive} has no member {min(left)}.", "It is incomplete, or a different archive.", _advice(archive)
        )


def _from_zip(archive: Path, wanted: Mapping[str, RemoteFile], copy: Copy) -> set[str]:
    """Copies the wanted members of a zip archive. Returns the names of missing members."""
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


def _from_tar(archive: Path, wanted: Mapping[str, RemoteFile], copy: Copy) -> set[str]:
    """Copies the wanted members of a tar archive. Returns the names of missing members."""
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
def damaged_archive_errors(archive: Path) -> Iterator[None]:
    """Context manager that converts exceptions about a damaged archive into a UserError with its path."""
    try:
        yield
    except _BROKEN as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{archive} is damaged or incomplete: {said}.", _advice(archive)) from None


def _no_file(archive: Path, name: str) -> UserError:
    return UserError(
        f"{name} in {archive} is encrypted or is not a regular file.", "It was not unpacked.", _advice(archive)
    )


def _advice(archive: Path) -> str:
    return f"Remove {archive.name} and download it again."
