"""Atomic writing of files and folders: symlinks, pipes, devices, permissions and errors."""

import os
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_directory, atomic_file, atomic_files, check_writable, write_text


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


class TestAtomicFile:
    def test_exception_keeps_the_old_file(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a", "old")
        with pytest.raises(TypeError), atomic_file(tmp_path / "a", "w") as file:
            print("new", file=file, end=b"")  # type: ignore[call-overload]
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

    def test_full_disk_error_names_the_file(self, tmp_path: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)  # stands for a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:  # closing the file fails again, because its buffer does not fit either
            with pytest.raises(UserError, match="big does not fit on the disk"), atomic_file(tmp_path / "big") as file:
                file.write(bytes(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(tmp_path.iterdir())

    def test_writing_to_a_symlink_writes_its_target(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("real")
        write_text(tmp_path / "link", "text")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_text() == "text"

    def test_text_is_written_to_a_named_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        got: list[str] = []
        reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
        reader.start()
        write_text(tmp_path / "pipe", "text")
        reader.join()
        assert got == ["text"]
        assert (tmp_path / "pipe").is_fifo()

    def test_text_is_written_to_a_device(self) -> None:
        write_text("/dev/null", "text")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)

    def test_text_is_appended_to_an_open_file_descriptor(self, tmp_path: Path) -> None:
        with (tmp_path / "a").open("w") as file:
            file.write("before ")
            file.flush()
            with atomic_file(f"/dev/fd/{file.fileno()}", "a") as again:
                again.write("after")
        assert (tmp_path / "a").read_text() == "before after"

    def test_permissions_of_a_new_file_follow_the_umask(self, tmp_path: Path, umask: None) -> None:
        write_text(tmp_path / "a", "")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640

    def test_replaced_file_keeps_its_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch(mode=0o600)
        write_text(tmp_path / "a", "new")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600

    def test_error_names_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no folder .*/nowhere"):
            write_text(tmp_path / "nowhere" / "a", "")

    def test_writing_a_file_to_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="it is a folder"):
            write_text(tmp_path, "")

    def test_full_disk_is_a_user_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="texts does not fit on the disk"), atomic_file(tmp_path / "texts"):
            raise OSError(28, "No space left on device")
        with pytest.raises(OSError, match="No such file") as raised, atomic_file(tmp_path / "texts"):
            (tmp_path / "other").read_text()
        assert raised.value.filename == str(tmp_path / "other")
        assert list(tmp_path.iterdir()) == []

    def test_long_names_that_begin_alike_are_written(self, tmp_path: Path) -> None:
        paths = [tmp_path / (120 * "é" + end) for end in "ab"]
        with atomic_files(paths) as files:
            for file, path in zip(files, paths, strict=True):
                file.write(path.name.encode())
        assert all(path.read_text() == path.name for path in paths)
        assert set(tmp_path.iterdir()) == set(paths)

    def test_exception_leaves_no_file_if_several_are_written(self, tmp_path: Path) -> None:
        paths = [tmp_path / "new" / name for name in "ab"]
        with pytest.raises(KeyError), atomic_files(paths):
            raise KeyError
        assert list((tmp_path / "new").iterdir()) == []


class TestAtomicDirectory:
    def test_exception_leaves_no_folder(self, tmp_path: Path) -> None:
        for only in ((), ("*.txt",)):
            with pytest.raises(FileExistsError), atomic_directory(tmp_path / "a" / "b", only=only) as folder:
                folder.mkdir()
            assert list(tmp_path.iterdir()) == []

    def test_existing_folder_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "old").touch()
        (tmp_path / "link").symlink_to("real")
        with atomic_directory(tmp_path / "link") as folder:
            (folder / "new").touch()
        assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]
        assert (tmp_path / "link").is_symlink()

    def test_files_outside_the_given_patterns_are_kept(self, tmp_path: Path) -> None:
        for name in ("old.idx", "notes"):
            (tmp_path / name).touch()
        with atomic_directory(tmp_path, only=("dict.txt", "*.idx")) as folder:
            (folder / "dict.txt").touch()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dict.txt", "notes"]


def test_check_writable_leaves_no_file(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", key="save_dir")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="save_dir="):
        check_writable(tmp_path / "file" / "a", key="save_dir")
