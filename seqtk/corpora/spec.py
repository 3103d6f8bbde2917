"""Types for the description of a published corpus: files with lengths and checksums, and texts of splits."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from seqtk.data.corpus import chunks
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from seqtk.utils.text_io import open_decompressed


@dataclass(frozen=True)
class RemoteFile:
    """A published file, or a member of an archive. `length` and `digest` are None if they are not published."""

    name: str  # its URL, or its path in the archive
    length: int | None = None  # in bytes
    digest: str | None = None  # algorithm and checksum, such as "md5:a1fa…"
    also: tuple[str, ...] = ()  # other names under which the same file may be on the disk
    members: tuple["RemoteFile", ...] = ()  # the wanted members of an archive

    @property
    def file_name(self) -> str:
        """The last component of `name`, by which the texts of a corpus refer to the file."""
        return self.name.rsplit("/", 1)[-1]


class Text(Protocol):
    """Protocol of texts of a corpus: text files of a split that are made from published files."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the files that `write` writes."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the published files that `write` reads."""

    def write(self, inputs: Mapping[str, Path], outputs: Sequence[Path], *, reporter: Reporter) -> dict[str, int]:
        """Writes the files. Returns counts by name, such as the number of lines or bytes."""


@dataclass(frozen=True)
class Corpus:
    """A corpus: published files, the texts of its splits, and the settings of its data-bin."""

    name: str
    about: str  # a one-line description
    databin: str  # the folder in data-bin/ that recipes read
    files: tuple[RemoteFile, ...]
    texts: tuple[Text, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # settings of seqtk-preprocess


class ChecksumVerifier:
    """Computes the length and checksum of a file part by part, and compares them with the published values."""

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
        """Compares length and checksum, and returns the result as text ("length and md5 as published").

        Raises UserError if the file differs. The error begins with `where` and ends with `advice`.
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
    """Compares the file at `path` with the published file, and returns the result as text.

    If the file was compressed after publication, its decompressed content is compared. Raises UserError if they differ.
    """
    packed = published.name.endswith(".gz")
    if packed and path.suffix != ".gz":
        return "not compared, because only the checksum of the compressed file is published"
    check = ChecksumVerifier(published)
    bar = reporter.bytes_bar(path, f"checking {path.name}")
    compressed_since = path.suffix == ".gz" and not packed
    with open_decompressed(path) if compressed_since else open(path, "rb") as file, bar:
        for chunk in chunks(file, path):
            check.add(chunk)
            bar.update(len(chunk))
    return check.end(str(path), advice)
