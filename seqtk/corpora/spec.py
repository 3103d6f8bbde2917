"""The types that describe a published corpus: files with lengths and checksums, and the texts of its splits."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from seqtk.data.corpus import read_chunk
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from seqtk.utils.text_io import open_decompressed


@dataclass(frozen=True)
class RemoteFile:
    """A published file, or a member of an archive. A length or checksum of None is not published."""

    name: str  # its URL, or its path in the archive
    length: int | None = None  # in bytes
    digest: str | None = None  # the algorithm and the digits, such as "md5:a1fa…"
    also: tuple[str, ...] = ()  # other names under which the same file may be on the disk
    members: tuple["RemoteFile", ...] = ()  # the wanted members of an archive

    @property
    def file_name(self) -> str:
        """The last part of the name, by which the texts of a corpus refer to the file."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def items(self) -> tuple["RemoteFile", ...]:
        """The files with text: the file itself, or the members if it is an archive."""
        return self.members or (self,)


class Text(Protocol):
    """Text files of a data-bin that are made from published files."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the files that it writes."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the published files that it reads."""

    def write(self, inputs: Mapping[str, Path], outputs: Sequence[Path], *, reporter: Reporter) -> dict[str, int]:
        """Writes the files. Returns the numbers of lines that were read and written."""


@dataclass(frozen=True)
class Corpus:
    """A corpus: published files, the texts of its splits, and the settings of its data-bin."""

    name: str
    about: str  # one line
    databin: str  # the folder in data-bin/ where recipes look for it
    files: tuple[RemoteFile, ...]
    texts: tuple[Text, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # settings of seqtk-preprocess


class ChecksumVerifier:
    """Computes the length and checksum of a file in parts, and compares them with the published ones."""

    def __init__(self, published: RemoteFile) -> None:
        self._published = published
        self._length = 0
        kind = published.digest.partition(":")[0] if published.digest else None
        self._hash = hashlib.new(kind, usedforsecurity=False) if kind else None

    def add(self, chunk: bytes) -> None:
        """Adds the next bytes of the file."""
        self._length += len(chunk)
        if self._hash is not None:
            self._hash.update(chunk)

    def end(self, where: str, advice: str) -> str:
        """Compares the file, and returns a text that names the compared properties ("length and md5 as published").

        Raises UserError if the file differs. The error names `where` and ends with `advice`.
        """
        published, compared = self._published, []
        if published.length is not None:
            compared.append("length")
            if self._length != published.length:
                difference = f"it has {self._length:,} bytes, not {published.length:,}."
                raise UserError(f"{where} differs from the published {published.file_name}:", difference, advice)
        if published.digest is not None and self._hash is not None:
            kind, _, digits = published.digest.partition(":")
            compared.append(kind)
            if self._hash.hexdigest() != digits:
                difference = f"its {kind} is {self._hash.hexdigest()}, not {digits}."
                raise UserError(f"{where} differs from the published {published.file_name}:", difference, advice)
        return f"{' and '.join(compared)} as published" if compared else "neither length nor checksum is published"


def check_file(path: Path, published: RemoteFile, *, advice: str, reporter: Reporter) -> str:
    """Compares the file at `path` with the published one, and returns the result as text.

    If the file was compressed after publication, its decompressed content is compared. Raises UserError if it differs.
    """
    packed = published.name.endswith(".gz")
    if packed and path.suffix != ".gz":
        return "not compared: it is decompressed, and only the compressed file has a published checksum"
    check = ChecksumVerifier(published)
    bar = reporter.bytes_bar(path, f"checking {path.name}")
    compressed_since = path.suffix == ".gz" and not packed
    with open_decompressed(path) if compressed_since else open(path, "rb") as file, bar:
        for chunk in chunks(file, path):
            check.add(chunk)
            bar.update(len(chunk))
    return check.end(str(path), advice)


def chunks(file: Any, path: Path) -> Iterator[bytes]:
    """Yields the bytes of an open file in parts. Raises UserError if it is compressed and damaged."""
    while chunk := read_chunk(file, path):
        yield chunk
