"""Labeled data-bins from NumPy files: token ids, classes and order are kept, and an error leaves no file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from seqtk.cli.preprocess import main
from seqtk.data import labelled_arrays
from seqtk.data.labelled import preprocess_labelled
from seqtk.data.labelled_text import Columns, read_labelled
from seqtk.data.preprocess import PreprocessConfig
from seqtk.data.sources import DataBinSource, DataBinSourceConfig
from seqtk.tasks.classification import ClassificationConfig, ClassificationTask
from seqtk.utils.errors import UserError

RANDOM = np.random.default_rng(1)
IMAGES = RANDOM.integers(0, 256, (6, 4, 4), dtype=np.uint8)
LABELS = np.array([3, 10, 3, 2, 2, 10])
ROWS = RANDOM.integers(0, 500, (5, 7))
LENGTHS = np.array([7, 2, 0, 1, 5])
FIVE = np.array(["b", "a", "a", "b", "a"])
NAMED = Columns(text=("image",), label="label")


def make(folder: Path, columns: Columns = NAMED, **settings: Any) -> DataBinSource:
    preprocess_labelled(PreprocessConfig(columns=columns, destdir=str(folder / "made"), **settings))
    return DataBinSource(DataBinSourceConfig(), data=str(folder / "made"))


def save(folder: Path, name: str = "train.npz", **arrays: npt.NDArray[Any]) -> str:
    np.savez_compressed(folder / name, **arrays)
    return str(folder / name)


def items(source: DataBinSource, split: str = "train") -> list[list[int]]:
    found = source.split(split)
    return [(found[index][:-1] - 4).tolist() for index in range(len(found))]


class TestDataBins:
    def test_images_and_classes_are_kept(self, tmp_path: Path) -> None:
        source = make(tmp_path, train=save(tmp_path, image=IMAGES, label=LABELS))
        assert items(source) == IMAGES.reshape(6, -1).tolist()
        assert source.classes() == ["2", "3", "10"]
        assert source.labels("train").tolist() == [1, 2, 1, 0, 0, 2]

    def test_classification_task_detects_images(self, tmp_path: Path) -> None:
        make(tmp_path, train=save(tmp_path, image=IMAGES, label=LABELS[:, None]))
        assert ClassificationTask(ClassificationConfig(data=str(tmp_path / "made"))).pixels == 16

    def test_npy_labels_are_read_from_a_second_file(self, tmp_path: Path) -> None:
        np.save(tmp_path / "train.npy", IMAGES)
        np.save(tmp_path / "train.label.npy", LABELS)
        source = make(tmp_path, Columns(), train=str(tmp_path / "train.npy"))
        assert items(source) == IMAGES.reshape(6, -1).tolist()

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_every_version_of_the_npy_format_is_read(self, version: tuple[int, int], tmp_path: Path) -> None:
        for name, array in (("train.npy", IMAGES), ("train.label.npy", LABELS)):
            with open(tmp_path / name, "wb") as file:
                np.lib.format.write_array(file, array, version=version)
        source = make(tmp_path, Columns(), train=str(tmp_path / "train.npy"))
        assert items(source) == IMAGES.reshape(6, -1).tolist()

    def test_columns_default_to_text_and_label(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main([f"train={save(tmp_path, text=IMAGES, label=LABELS)}", f"destdir={tmp_path / 'made'}"])
        assert "2 33.3%, 3 33.3%, 10 33.3%" in capsys.readouterr().out

    @pytest.mark.parametrize("part", [3, 1 << 20])
    @pytest.mark.parametrize("padded", [True, False])
    def test_lengths_apply_to_padded_rows_and_flat_arrays(
        self, padded: bool, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(labelled_arrays, "_PART", part)
        wanted = [row[:length].tolist() for row, length in zip(ROWS, LENGTHS, strict=True)]
        tokens = ROWS if padded else np.concatenate(wanted).astype(">i4")
        columns = Columns(("tokens",), lengths="size")
        source = make(tmp_path, columns, train=save(tmp_path, tokens=tokens, size=LENGTHS, label=FIVE))
        assert items(source) == wanted
        assert len(source.vocabulary()) == 4 + 1 + max(map(max, filter(None, wanted)))

    def test_valid_share_moves_examples_with_their_labels(self, tmp_path: Path) -> None:
        many = np.arange(100)
        path = save(tmp_path, image=np.stack([many, many], 1), label=many % 2)
        source = make(tmp_path, train=path, valid_share=0.2, test=(path,))
        train, valid = items(source), items(source, "valid")
        assert (len(train), len(valid)) == (80, 20)
        assert sorted(train + valid) == items(source, "test")
        assert source.labels("valid").tolist() == [first % 2 for first, _ in valid]

    def test_white_space_in_classes_becomes_spaces(self, tmp_path: Path) -> None:
        labels = np.array(["a\nb", "c ", "a\nb", "c", "d\r", "c"])
        source = make(tmp_path, train=save(tmp_path, image=IMAGES, label=labels))
        assert source.classes() == ["a b", "c", "d"]
        assert source.labels("train").tolist() == [0, 1, 0, 1, 2, 1]

    def test_columns_classes_setting_renames_classes(self, tmp_path: Path) -> None:
        columns = Columns(("image",), classes=("2:two", "3:three", "10:two"))
        source = make(tmp_path, columns, train=save(tmp_path, image=IMAGES, label=LABELS))
        assert source.classes() == ["three", "two"]
        assert source.labels("train").tolist() == [0, 1, 0, 1, 1, 1]


def test_arrays_can_be_read_as_text(tmp_path: Path) -> None:
    path = save(tmp_path, image=ROWS, label=FIVE)
    found = [(example.line, example.texts[0], example.label) for example in read_labelled(path, NAMED)]
    assert found[1] == (2, " ".join(map(str, ROWS[1])), "a")


class TestRefusals:
    @pytest.mark.parametrize(
        ("arrays", "columns", "words"),
        [
            ({"image": IMAGES}, NAMED, "no array 'label'"),
            ({"image": IMAGES, "lable": LABELS}, NAMED, "'lable'"),
            ({"image": IMAGES.astype(float), "label": LABELS}, NAMED, "float64"),
            ({"image": IMAGES.astype(object), "label": LABELS}, NAMED, "unpickled"),
            ({"image": np.zeros(6, int), "label": LABELS}, NAMED, "columns.lengths"),
            ({"image": np.asfortranarray(IMAGES), "label": LABELS}, NAMED, "Fortran"),
            ({"image": IMAGES, "label": LABELS[:5]}, NAMED, r"\[5\]"),
            ({"image": IMAGES, "label": LABELS / 2}, NAMED, "float64"),
            ({"image": IMAGES[:0], "label": LABELS[:0]}, NAMED, "no examples"),
            ({"image": IMAGES[:, :0], "label": LABELS}, NAMED, "empty"),
            ({"image": IMAGES, "label": LABELS * 0}, NAMED, "have the class"),
            ({"image": ROWS - 499, "label": FIVE}, NAMED, "Example 1 "),
            ({"image": np.array([[1, 2], [1, 9_999_999]]), "label": FIVE[:2]}, NAMED, r"Example 2 (.|\n)*1,048,575"),
            ({"image": IMAGES, "label": np.array([b"a", b"\xff", b"a", b"b", b"c", b"d"])}, NAMED, "Example 2 "),
            ({"image": IMAGES, "label": np.array([*"abcde", "\ud800"])}, NAMED, "Example 6 "),
            ({"image": IMAGES, "label": np.array([*"abcde", " \n"])}, NAMED, "Example 6 "),
            ({"image": ROWS, "n": LENGTHS + 1, "label": FIVE}, Columns(("image",), lengths="n"), "lengths"),
            ({"image": ROWS.ravel(), "n": LENGTHS, "label": FIVE}, Columns(("image",), lengths="n"), "sum to 15"),
            ({"image": IMAGES, "label": LABELS}, Columns(("image", "label")), r"columns\.text"),
            ({"image": IMAGES, "label": LABELS}, Columns(("image",), "label"), r"columns\.second"),
            ({"image": IMAGES, "label": LABELS}, Columns(("image",), classes=("3:a", "10:b")), "Example 4 .*'2'"),
            ({"image": IMAGES, "label": LABELS}, Columns(("image",), classes=("3",)), r"columns\.classes"),
        ],
    )
    def test_invalid_arrays_leave_no_output(
        self, arrays: dict[str, Any], columns: Columns, words: str, tmp_path: Path
    ) -> None:
        path = save(tmp_path, **arrays)
        with pytest.raises(UserError, match=words) as caught:
            make(tmp_path, columns, train=path)
        assert len(str(caught.value).splitlines()) <= 3
        assert [each.name for each in tmp_path.iterdir()] == ["train.npz"]

    @pytest.mark.parametrize("damage", ["junk", "empty", "cut", "npy", "flipped", "other"])
    def test_damaged_files_leave_no_output(self, damage: str, tmp_path: Path) -> None:
        path = Path(save(tmp_path, image=RANDOM.integers(0, 256, (50, 99), dtype=np.uint8), label=np.arange(50)))
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[2000:2010] = bytes(10)
        changed = {"junk": b"\x00junk" * 50, "empty": b"", "cut": content[:-700], "npy": b"\x93NUMPY\x01\x00"}
        path.write_bytes(changed.get(damage, content))
        if damage == "other":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("image.npy", b"no array")
        with pytest.raises(UserError, match=r"train\.npz") as caught:
            make(tmp_path, train=str(path))
        assert len(str(caught.value).splitlines()) <= 3
        assert [each.name for each in tmp_path.iterdir()] == ["train.npz"]

    @pytest.mark.parametrize(
        ("header", "wrong", "message"),
        [
            (b"(6, 4, 4)", b"(9**9,4) ", r"train\.npy"),
            (b"NUMPY\x01\x00", b"NUMPY\x04\x00", r"train\.npy is in version 4\.0"),
        ],
        ids=["shape", "version"],
    )
    def test_wrong_header_is_refused(self, header: bytes, wrong: bytes, message: str, tmp_path: Path) -> None:
        np.save(tmp_path / "train.npy", IMAGES)
        content = (tmp_path / "train.npy").read_bytes()
        (tmp_path / "train.npy").write_bytes(content.replace(header, wrong))
        with pytest.raises(UserError, match=message):
            make(tmp_path, Columns(), train=str(tmp_path / "train.npy"))

    @pytest.mark.parametrize("settings", [{"tokens": "words"}, {"vocab_size": 9}, {"threshold": 2}, {"max_length": 3}])
    def test_settings_for_text_are_refused(self, settings: dict[str, Any], tmp_path: Path) -> None:
        path = save(tmp_path, image=IMAGES, label=LABELS)
        with pytest.raises(UserError, match=next(iter(settings))):
            make(tmp_path, train=path, **settings)

    def test_error_names_a_missing_file(self, tmp_path: Path) -> None:
        for name in ("none.npz", "none.npy"):
            with pytest.raises(UserError, match=name):
                make(tmp_path, Columns(), train=str(tmp_path / name))
