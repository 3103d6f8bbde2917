"""Small copies of every corpus: archives with the published layout and few lines, with matching checksums."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqtk.corpora.spec import Corpus, RemoteFile
from seqtk.corpora.texts import Lines, Part

NOUNS = ("dog", "cat", "bird", "house", "tree", "river", "stone")
TRAIN, HELD_OUT = 40, 7


def sentences(count: int, *, side: str = "en") -> list[bytes]:
    """Returns distinct lines. Lines in other languages have letters that are not ASCII."""
    verb = {"en": "sees", "de": "hört", "fr": "à"}.get(side, "has")
    return [f"the {NOUNS[i % 7]} {verb} {i} of the {NOUNS[i * i % 5]}s".encode() for i in range(count)]


def sgml(lines: list[bytes]) -> bytes:
    """Returns SGML as in WMT's test sets. The first segment has an entity and a line break."""
    segments = [b'<seg id="%d">%s</seg>' % (i + 1, line) for i, line in enumerate(lines)]
    segments[0] = segments[0].replace(b" of ", b" &amp; ").replace(b" the ", b"  the\n")
    return b'<refset setid="x" srclang="any">\n<doc docid="a">\n<p>\n%s\n</p>\n</doc>\n</refset>\n' % b"\n".join(
        segments
    )


def text_of(name: str) -> bytes:
    """Returns the content of a small copy of the published file `name`."""
    plain = name.removesuffix(".gz").removesuffix(".sgm")
    side = next((side for side in ("de", "fr") if plain.endswith(f".{side}")), "en")
    if name == "enwik8":
        return b"".join(b"<page>%s</page>\n" % line for line in sentences(200, side="fr"))[:1000]
    if name.endswith(".sgm"):
        return sgml(sentences(HELD_OUT, side=side))
    parallel = plain.endswith((".en", ".de", ".fr"))
    if not parallel:
        lines = sentences(TRAIN if "train" in name else HELD_OUT)
        return b"".join(b" %s \n" % line for line in [*lines[:-1], b""])
    if "train" in name or "val" in name or "test" in name:  # Multi30k
        return b"".join(line + b"\n" for line in sentences(TRAIN if "train" in name else HELD_OUT, side=side))
    return dirty(side)


def dirty(side: str) -> bytes:
    """Returns training text with an empty line, bytes that are not UTF-8, and unusual spaces."""
    lines = sentences(TRAIN, side=side)
    if side == "en":
        lines[3] = b" \xc2\x85"
    else:
        lines[5] = "für immer".encode("latin-1")
    lines[7] = b"\xef\xbb\xbf  " + lines[7].replace(b" ", b"\t \xe2\x80\xa8", 1) + b" \r"
    return b"\n".join(lines)  # the last line has no line feed


def archive(url: str, members: Mapping[str, bytes]) -> bytes:
    """Returns an archive whose format follows from the suffix of the URL."""
    file = io.BytesIO()
    if url.endswith(".zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in members.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(fileobj=file, mode="w" if url.endswith(".tar") else "w:gz") as tarred:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tarred.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sealed(published: RemoteFile, content: bytes) -> RemoteFile:
    """Returns `published` with the length of `content` and, if a checksum is published, the checksum of `content`."""
    kind = published.digest.partition(":")[0] if published.digest else None
    digest = f"{kind}:{hashlib.new(kind, content).hexdigest()}" if kind else None
    return replace(published, length=published.length and len(content), digest=digest)


def content_of(published: RemoteFile) -> bytes:
    """Returns the bytes of a small copy of a published file or archive."""
    if published.members:
        noise = {"README": b"read me", "training/other.cs-en.cs": b"ahoj\n"}
        return archive(published.name, noise | {member.name: content_of(member) for member in published.members})
    text = text_of(published.file_name)
    return gzip.compress(text, mtime=0) if published.name.endswith(".gz") else text


def miniature(corpus: Corpus) -> tuple[Corpus, dict[str, bytes]]:
    """Returns the corpus with the lengths, checksums and counts of a small copy, and the copied files by name."""
    files, contents = [], {}
    for published in corpus.files:
        content = contents[published.file_name] = content_of(published)
        members = tuple(sealed(member, content_of(member)) for member in published.members)
        files.append(replace(sealed(published, content), members=members))
    return replace(
        corpus, files=tuple(files), texts=tuple(map(_shrunk, corpus.texts)), settings=_small(corpus.settings)
    ), contents


def _shrunk(text: Any) -> Any:
    if isinstance(text, Part):
        return replace(text, start=text.start // 100_000, length=text.length // 100_000)
    if isinstance(text, Lines):
        return replace(text, lines=TRAIN if text.name.startswith("train") else HELD_OUT)
    return text


def _small(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **settings,
        **({"vocab_size": 400 if "byte_fallback" in settings else 120} if "vocab_size" in settings else {}),
    }


def lay_out(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Writes the files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
