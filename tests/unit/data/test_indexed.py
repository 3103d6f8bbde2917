"""Indexed files: round trips, dtypes, damaged files, and fairseq's older format."""

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqtk.data.indexed import IndexedDataset, JoinedItems
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.utils.errors import UserError

ITEMS = [[5, 9, 7, 2], [2], [], [3, 2]]


def _write(prefix: Path, items: list[list[int]] = ITEMS, vocabulary_size: int | None = 100) -> None:
    with IndexedWriter(prefix, vocabulary_size=vocabulary_size) as writer:
        for item in items:
            writer.append(item)


@pytest.mark.parametrize(
    ("vocabulary_size", "itemsize"), [(65_499, 2), (65_500, 4), (None, 4), (4_294_967_294, 4), (4_294_967_295, 8)]
)
def test_items_are_read_back_in_every_dtype(tmp_path: Path, vocabulary_size: int | None, itemsize: int) -> None:
    _write(tmp_path / "x", vocabulary_size=vocabulary_size)
    dataset = IndexedDataset(tmp_path / "x")
    assert [dataset[i].tolist() for i in range(len(dataset))] == ITEMS
    assert dataset.sizes.tolist() == [4, 1, 0, 2]
    assert (dataset.sizes.dtype, dataset[0].dtype) == (np.int32, np.int64)
    assert (tmp_path / "x.bin").stat().st_size == 7 * itemsize
    assert (tmp_path / "x.idx").stat().st_size == 26 + 12 * len(ITEMS)


def test_writing_many_items_equals_writing_each_item(tmp_path: Path) -> None:
    _write(tmp_path / "one")
    with IndexedWriter(tmp_path / "all", vocabulary_size=100) as writer:
        writer.extend_arrays(np.concatenate(ITEMS[:2]), np.array([4, 1]))
        writer.extend_arrays(np.array([3, 2]), np.array([0, 2]))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"all.{suffix}").read_bytes()


def test_offsets_computed_in_blocks_are_correct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqtk.data.indexed_writer._BLOCK", 3)
    items = [list(range(1, 2 + i % 5)) for i in range(11)]
    _write(tmp_path / "x", items)
    dataset = IndexedDataset(tmp_path / "x")
    assert [dataset[i].tolist() for i in range(11)] == items


def test_reading_several_items_equals_reading_each_item(tmp_path: Path) -> None:
    _write(tmp_path / "x")
    dataset = IndexedDataset(tmp_path / "x")
    assert [item.tolist() for item in dataset.take([3, 0, 2, 3])] == [ITEMS[index] for index in (3, 0, 2, 3)]
    assert dataset.take([]) == []


def test_pickled_data_set_reads_equal_items(tmp_path: Path) -> None:
    _write(tmp_path / "x")
    copy = pickle.loads(pickle.dumps(IndexedDataset(tmp_path / "x")))
    assert copy[-1].tolist() == [3, 2]
    with pytest.raises(IndexError):
        copy[4]


def test_empty_data_set_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "x", [])
    assert len(IndexedDataset(tmp_path / "x")) == 0
    assert IndexedDataset(tmp_path / "x").sizes.tolist() == []


def test_exception_while_writing_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="sizes sum to 2"),
        IndexedWriter(tmp_path / "x", vocabulary_size=9) as writer,
    ):
        writer.extend_arrays(np.array([1]), np.array([2]))
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    prefix = tmp_path / "x"
    _write(prefix)
    index, data = (tmp_path / "x.idx").read_bytes(), (tmp_path / "x.bin").read_bytes()
    documents = struct.pack("<QQQ", 2, 0, 4)  # Megatron-LM adds a second count and an array
    for damaged, complaint in [
        (index[:-5], "truncated"),
        (index[:20], "truncated"),
        (b"", "not the index"),
        (b"PK" + index[2:], "not the index"),
        (index[:9] + b"\2" + index[10:], "version"),
        (index[:17] + b"\6" + index[18:], "not token ids"),
        (index[:26] + documents[:8] + index[26:] + documents[8:], "Megatron"),
    ]:
        (tmp_path / "x.idx").write_bytes(damaged)
        with pytest.raises(UserError, match=complaint):
            IndexedDataset(prefix)
    (tmp_path / "x.idx").write_bytes(index)
    (tmp_path / "x.bin").write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"13 bytes, but .*idx requires 14"):
        IndexedDataset(prefix)
    (tmp_path / "x.bin").unlink()
    with pytest.raises(UserError, match=r"There is no file .*x\.bin\.\nCopy the file again"):
        IndexedDataset(prefix)


def test_reader_subtracts_one_from_ids_in_old_format(tmp_path: Path) -> None:
    sizes = [len(item) for item in ITEMS]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    header = struct.pack("<8sQQQQQ", b"TNTIDX\0\0", 1, 4, 4, len(ITEMS), len(ITEMS))
    offsets = np.arange(len(ITEMS) + 1, dtype="<i8").tobytes() + starts.astype("<i8").tobytes()
    index = header + offsets + np.array(sizes, dtype="<i8").tobytes()
    (tmp_path / "x.idx").write_bytes(index)
    (tmp_path / "x.bin").write_bytes((np.concatenate(ITEMS) + 1).astype("<i4").tobytes())
    dataset = IndexedDataset(tmp_path / "x")
    assert [dataset[i].tolist() for i in range(len(dataset))] == ITEMS
    assert [item.tolist() for item in dataset.take(range(len(dataset)))] == ITEMS
    assert dataset.sizes.tolist() == sizes
    (tmp_path / "x.idx").write_bytes(index[:-8])
    with pytest.raises(UserError, match="damaged"):
        IndexedDataset(tmp_path / "x")


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_file_that_shrinks_while_open_is_an_error(tmp_path: Path, suffix: str) -> None:
    """With a memory-mapped file, SIGBUS would end the process."""
    _write(tmp_path / "x", [list(range(4, 1000))] * 50)
    dataset = IndexedDataset(tmp_path / "x")
    assert len(dataset.sizes) == 50
    os.truncate(tmp_path / f"x.{suffix}", 300)
    with pytest.raises(UserError, match=rf"x\.{suffix} has become shorter"):
        dataset[49]
    with pytest.raises(UserError, match=rf"x\.{suffix} has become shorter"):
        dataset.take([0, 49])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_items_read(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    with IndexedWriter(tmp_path / "x", vocabulary_size=100) as writer:
        for _ in range(10):
            writer.extend_arrays(np.full(4_000_000, 5), np.full(2_000, 2_000))
    size = (tmp_path / "x.bin").stat().st_size
    dataset = IndexedDataset(tmp_path / "x")
    dataset[0]
    before = resident()
    assert sum(int(dataset[index][-1]) for index in range(len(dataset))) == 5 * 20_000
    assert size == 80_000_000
    assert resident() - before < size / 20


class TestJoined:
    @pytest.fixture
    def joined(self, tmp_path: Path) -> JoinedItems:
        for name, items in (("a", ITEMS), ("b", []), ("c", [[8, 2], [7, 7, 2]])):
            _write(tmp_path / name, items)
        return JoinedItems([IndexedDataset(tmp_path / name) for name in "abc"])

    def test_joined_items_equal_the_items_of_the_parts(self, joined: JoinedItems) -> None:
        expected = [*ITEMS, [8, 2], [7, 7, 2]]
        assert [joined[index].tolist() for index in range(len(joined))] == expected
        assert joined[-1].tolist() == expected[-1]
        assert (joined.sizes.tolist(), joined.total) == ([len(item) for item in expected], 12)
        with pytest.raises(IndexError):
            joined[6]

    def test_token_stream_continues_across_parts(self, joined: JoinedItems) -> None:
        stream = [token for item in [*ITEMS, [8, 2], [7, 7, 2]] for token in item]
        for start in range(12):
            for end in range(start, 13):
                assert joined.stream(start, end).tolist() == stream[start:end]


_OPEN_MANY = """
import resource, sys
from seqtk.data.indexed import IndexedDataset
from seqtk.utils.errors import UserError
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 60))
opened = [IndexedDataset(sys.argv[1]) for _ in range(20)]
try:
    opened += [IndexedDataset(sys.argv[1]) for _ in range(20)]
except UserError as error:
    print(error)
"""


def test_error_about_too_many_open_files_names_ulimit(tmp_path: Path) -> None:
    """seqtk raises the soft limit to the hard limit first."""
    _write(tmp_path / "x")
    command = [sys.executable, "-c", _OPEN_MANY, str(tmp_path / "x")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ulimit -n" in found.stdout
    assert len(found.stdout.splitlines()) <= 3
