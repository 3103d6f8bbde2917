"""Finds published files on the disk. Archives may be unpacked."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from seqtk.corpora.spec import Corpus, RemoteFile
from seqtk.utils.errors import UserError
from seqtk.utils.text_io import SUFFIXES


def find_all(corpus: Corpus, places: Sequence[Path]) -> dict[RemoteFile, Path]:
    """Returns a dict from each published file, or each wanted member of an unpacked archive, to its path.

    `places` are the files and folders to search. Raises UserError if a file is not found.
    """
    found: dict[RemoteFile, Path] = {}
    for published in corpus.files:
        whole = _find(published, places)
        parts = {member: _find(member, places) for member in published.members}
        if whole is None and not (parts and all(parts.values())):
            raise _missing(published, [member for member, path in parts.items() if path is None], places)
        found |= {published: whole} if whole else {member: path for member, path in parts.items() if path}
    return found


def _missing(published: RemoteFile, members: Sequence[RemoteFile], places: Sequence[Path]) -> UserError:
    inside = f", nor its members {', '.join(member.name for member in members)}" if members else ""
    return UserError(
        f"There is no {published.file_name} in source={','.join(map(str, places))}{inside}.",
        f"It is published at {published.name}. Plain and .gz files are accepted.",
        "Remove source= to download it. source=A,B searches two folders.",
    )


def _find(published: RemoteFile, places: Sequence[Path]) -> Path | None:
    """Returns the first file in `places` that has one of the names of `published`."""
    return next((path for place in places for path in _candidates(published, place) if path.is_file()), None)


def _candidates(published: RemoteFile, place: Path) -> Iterator[Path]:
    names = [published.name.partition("://")[2] or published.name, published.file_name, *published.also]
    for name in names:
        for spelled in (name, f"{name}.gz", name.removesuffix(".gz")):
            if place.is_dir():
                yield place / spelled
            elif place.name == spelled.rsplit("/", 1)[-1]:
                yield place


def find_named(places: Sequence[Path], *names: str) -> Path | None:
    """Returns the first file or folder that has one of `names`, in `places` or at most two levels below them."""
    for name in names:
        for place in places:
            inside = [place / name, *sorted(place.glob(f"*/{name}"))] if place.is_dir() else []
            for path in [place, *inside]:
                if path.name == name and path.exists():
                    return path
    return None


def find_text(places: Sequence[Path], name: str) -> Path | None:
    """Returns the first text file with the name `name`, plain or compressed (see `find_named`)."""
    return find_named(places, *(f"{name}{suffix}" for suffix in SUFFIXES))


def missing_file(places: Sequence[Path], wanted: str) -> UserError:
    """Returns the error for a file of a corpus that was not found."""
    said = ",".join(map(str, places))
    return UserError(f"There is no {wanted} in source={said}.", "docs/corpora.md lists the files of each corpus.")
