"""What a published corpus is: its files with their lengths and checksums, and which text of which split they become."""

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
class Published:
    """A file as its authors publish it, or one in an archive. None stands for what nobody published."""

    name: str  # its URL; of one in an archive, its path there
    length: int | None = None  # in bytes
    digest: str | None = None  # the kind of checksum and its digits, as in "md5:a1fa…"
    also: tuple[str, ...] = ()  # names under which the same text is found elsewhere
    members: tuple["Published", ...] = ()  # what is wanted of an archive

    @property
    def file_name(self) -> str:
        """The last part of its name, by which the texts of a corpus refer to it."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def items(self) -> tuple["Published", ...]:
        """The files that hold its text: itself, or members of the archive that it is."""
        return self.members or (self,)


class Text(Protocol):
    """Some text files of a data-bin, and the published files they are made of."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the files that it writes."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the published files that it reads."""

    def write(self, inputs: Mapping[str, Path], outputs: Sequence[Path], *, reporter: Reporter) -> dict[str, int]:
        """Write the files, whole; how much of what there was."""


@dataclass(frozen=True)
class Corpus:
    """A corpus: published files, the texts of its splits, and the settings of its data-bin."""

    name: str
    about: str  # one line
    databin: str  # the folder in data-bin/ where recipes look for it
    files: tuple[Published, ...]
    texts: tuple[Text, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of seqtk-preprocess


class Check:
    """Counts and sums up the bytes of a copy, to be compared with what is published of it."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self._length = 0
        kind = published.digest.partition(":")[0] if published.digest else None
        self._hash = hashlib.new(kind, usedforsecurity=False) if kind else None

    def add(self, chunk: bytes) -> None:
        """The next bytes of the copy."""
        self._length += len(chunk)
        if self._hash is not None:
            self._hash.update(chunk)

    def end(self, where: str, advice: str) -> str:
        """What was compared. Raises UserError if the copy, which lies at `where`, is not what was published."""
        published, compared = self._published, []
        if published.length is not None:
            compared.append("length")
            if self._length != published.length:
                difference = f"it has {self._length:,} bytes, not {published.length:,}."
                raise UserError(f"{where} is not {published.file_name} as it was published:", difference, advice)
        if published.digest is not None and self._hash is not None:
            kind, _, digits = published.digest.partition(":")
            compared.append(kind)
            if self._hash.hexdigest() != digits:
                difference = f"its {kind} is {self._hash.hexdigest()}, not {digits}."
                raise UserError(f"{where} is not {published.file_name} as it was published:", difference, advice)
        return f"{' and '.join(compared)} as published" if compared else "neither length nor checksum is published"


def check_file(path: Path, published: Published, *, advice: str, reporter: Reporter) -> str:
    """In what the file at `path` was found to be the published one. Raises UserError if it is another one.

    What somebody compressed for keeping is compared decompressed; what was published compressed, compressed.
    """
    packed = published.name.endswith(".gz")
    if packed and path.suffix != ".gz":
        return "decompressed, so there is nothing published to compare it with"
    check = Check(published)
    bar = reporter.bytes_bar(path, f"checking {path.name}")
    compressed_since = path.suffix == ".gz" and not packed
    with open_decompressed(path) if compressed_since else open(path, "rb") as file, bar:
        for chunk in chunks(file, path):
            check.add(chunk)
            bar.update(len(chunk))
    return check.end(str(path), advice)


def chunks(file: Any, path: Path) -> Iterator[bytes]:
    """The bytes of an open file, a part at a time. Raises UserError if it is a broken gzip file."""
    while chunk := read_chunk(file, path):
        yield chunk
