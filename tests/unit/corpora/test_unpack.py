"""Archives: only the requested members are written, complete, and only to the given paths."""

import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from seqtk.corpora.spec import RemoteFile
from seqtk.corpora.unpack import unpack
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from tests.unit.corpora.tiny_corpora import archive

TEXT = b"some text\n" * 3000
WANTED = RemoteFile("inner/a.txt", len(TEXT), f"sha1:{hashlib.sha1(TEXT).hexdigest()}")
KINDS = (".zip", ".tgz", ".tar")


def unpack_wanted(path: Path, wanted: RemoteFile = WANTED) -> Path:
    """Unpacks `wanted` to out/a.txt next to the archive."""
    target = path.parent / "out" / "a.txt"
    unpack(path, {wanted: target}, reporter=Reporter())
    return target


def error_of(path: Path, wanted: RemoteFile = WANTED) -> str:
    before = tree(path.parent)
    with pytest.raises(UserError) as caught:
        unpack_wanted(path, wanted)
    assert tree(path.parent) - before <= {path.parent / "out"}
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def tree(folder: Path) -> set[Path]:
    return set(folder.parent.rglob("*"))


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(archive(path.name, members))
    return path


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A subfolder of `tmp_path`, so that a file written outside of it is detected."""
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "./"])
def test_only_requested_members_are_unpacked(inside: Path, kind: str, prefix: str) -> None:
    path = write_archive(inside / f"x{kind}", {"other": b"no", f"{prefix}inner/a.txt": TEXT, "inner/b.txt": b"no"})
    assert unpack_wanted(path).read_bytes() == TEXT
    assert {found.name for found in tree(inside)} == {"inside", path.name, "out", "a.txt"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../escaped", "../../escaped", "/tmp/seqtk-escaped", "out/../../escaped", "inner/../a.txt"]
)
def test_no_member_is_written_outside_its_target(inside: Path, kind: str, name: str) -> None:
    path = write_archive(inside / f"x{kind}", {name: b"evil", "inner/a.txt": TEXT})
    assert unpack_wanted(path).read_bytes() == TEXT
    assert {found.name for found in tree(inside)} == {"inside", path.name, "out", "a.txt"}
    assert not Path("/tmp/seqtk-escaped").exists()


def link(kind: bytes, target: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        with tarfile.open(folder / "x.tar", "w") as tarred:
            info = tarfile.TarInfo("inner/a.txt")
            info.type, info.linkname = kind, target
            tarred.addfile(info)
            whole = tarfile.TarInfo("inner/a.txt")  # would be written through the link
            whole.size = 4
            tarred.addfile(whole, io.BytesIO(b"evil"))
        return folder / "x.tar"

    return build


def zip_link(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.zip", "w") as zipped:
        info = zipfile.ZipInfo("inner/a.txt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "../../escaped")
    return folder / "x.zip"


@pytest.mark.parametrize(
    "build",
    [
        link(tarfile.SYMTYPE, "../../escaped"),
        link(tarfile.SYMTYPE, "/etc/passwd"),
        link(tarfile.LNKTYPE, "other"),
        link(tarfile.CHRTYPE, ""),
        link(tarfile.FIFOTYPE, ""),
        link(tarfile.DIRTYPE, ""),
        zip_link,
    ],
)
def test_links_and_devices_are_refused(inside: Path, build: Callable[[Path], Path]) -> None:
    assert "is not a regular file" in error_of(build(inside))


@pytest.mark.parametrize("kind", KINDS)
def test_error_names_a_missing_member(inside: Path, kind: str) -> None:
    assert "has no member inner/a.txt" in error_of(write_archive(inside / f"x{kind}", {"a.txt": TEXT}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_truncated_archive_is_refused(inside: Path, kind: str, share: float) -> None:
    import random

    noise = random.Random(3).randbytes(40_000)
    wanted = RemoteFile("inner/a.txt")
    whole = archive(f"x{kind}", {"other": noise[:5000], "inner/a.txt": noise})
    path = inside / f"x{kind}"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert str(path) in error_of(path, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_are_refused(inside: Path, kind: str) -> None:
    path = write_archive(inside / f"x{kind}", {"inner/a.txt": TEXT})
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 0xFF
    path.write_bytes(whole)
    assert path.name in error_of(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [TEXT[:-1], TEXT + b"\n", TEXT[:-1] + b"x"])
def test_member_that_differs_from_published_is_refused(inside: Path, kind: str, content: bytes) -> None:
    assert "differs from the published" in error_of(write_archive(inside / f"x{kind}", {"inner/a.txt": content}))


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", bytes(5000)])
def test_files_that_are_not_archives_are_refused(inside: Path, content: bytes) -> None:
    path = inside / "x.zip"
    path.write_bytes(content)
    assert str(path) in error_of(path)


def test_encrypted_archives_are_refused(inside: Path) -> None:
    path = write_archive(inside / "x.zip", {"inner/a.txt": TEXT})
    whole = bytearray(path.read_bytes())
    whole[6] |= 1
    whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(whole)
    assert "is not a regular file" in error_of(path)
