"""Labeled corpora: all published layouts give the same data-bin, and wrong files are refused."""

import csv
import gzip
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqtk.corpora.classification import LABELLED, prepare_labelled
from seqtk.corpora.images import write_png
from seqtk.corpora.lra.sets import ListOpsConfig, PathfinderConfig, prepare_listops, prepare_pathfinder
from seqtk.data.labelled import held_out
from seqtk.data.sources.databin import DataBin
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from tests.unit.corpora.fake_server import Served, Shelf

REVIEWS = [(split, label, n) for split in ("train", "test") for label in ("neg", "pos") for n in range(10)]


def review(label: str, number: int) -> str:
    return f"a {label} film , number {number} , café <br />"


def prepare(name: str, source: Path, folder: Path, counts: dict[str, int] | None = None, **settings: object) -> DataBin:
    corpus = replace(LABELLED[name], counts=counts or {})
    config = corpus.config(source=str(source), workers=1, **settings)  # type: ignore[arg-type]
    prepare_labelled(config, folder, corpus=corpus, reporter=Reporter())
    return DataBin(folder)


def contents(data: DataBin) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(data.directory.iterdir())}


def aclimdb(folder: Path) -> Path:
    for split, label, number in REVIEWS:
        path = folder / "aclImdb" / split / label / f"{number}_7.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(review(label, number))
    (folder / "aclImdb" / "train" / "unsup").mkdir()
    (folder / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("no class")
    return folder


class TestImdb:
    def test_every_source_format_gives_the_same_data_bin(self, tmp_path: Path) -> None:
        folders = aclimdb(tmp_path / "in")
        (tmp_path / "tar").mkdir()
        with tarfile.open(tmp_path / "tar" / "aclImdb_v1.tar.gz", "w:gz") as archive:
            archive.add(folders / "aclImdb", "aclImdb")
        (tmp_path / "tsv").mkdir()
        for split in ("train", "test"):
            rows = [f"{('neg', 'pos').index(k)}\t{n}_7\t{review(k, n)}\n" for s, k, n in REVIEWS if s == split]
            (tmp_path / "tsv" / f"{split}.tsv.gz").write_bytes(gzip.compress("".join(rows[::-1]).encode()))
        places = (folders, folders / "aclImdb", tmp_path / "tar", tmp_path / "tar/aclImdb_v1.tar.gz", tmp_path / "tsv")
        made = [prepare("lra_text", place, tmp_path / f"out{i}") for i, place in enumerate(places)]
        assert all(contents(data) == contents(made[0]) for data in made)

    def test_each_text_has_its_label(self, tmp_path: Path) -> None:
        data = prepare("lra_text", aclimdb(tmp_path / "in"), tmp_path / "out")
        assert data.classes() == ["neg", "pos"]
        assert {split: len(data.split(split)) for split in data.splits()} == {"train": 18, "valid": 2, "test": 20}
        for split in data.splits():
            for ids, label in zip(data.split(split), data.labels(split), strict=True):
                text = data.tokenizer().decode(data.vocabulary().decode(ids))
                assert text.startswith(f"a {data.classes()[label]} film , number")
        assert not any(path.is_dir() for path in data.directory.iterdir())

    def test_missing_review_is_refused(self, tmp_path: Path) -> None:
        source = aclimdb(tmp_path / "in")
        (source / "aclImdb" / "test" / "pos" / "3_7.txt").unlink()
        with pytest.raises(UserError, match="Found 19 reviews for test, but 20 are published"):
            prepare("imdb", source, tmp_path / "out", {"train": 20, "test": 20})
        assert not (tmp_path / "out").exists()


def ag_news(folder: Path, *, subset: bool = False) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        rows = [[str(k % 4 + 1), f"Title {k}", f'It\'s k{k % 4}, said \\AP, "again"'] for k in range(40)]
        short = subset and split == "train"
        with open(folder / f"{split}{'5k' * short}.csv", "w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
                [[f"{title} {text}", str(int(k) - 1)] for k, title, text in rows] if short else rows
            )
    return folder


class TestAgNews:
    @pytest.mark.parametrize("subset", [False, True])
    def test_title_and_description_are_read_with_their_class(self, subset: bool, tmp_path: Path) -> None:
        data = prepare("ag_news", ag_news(tmp_path / "in", subset=subset), tmp_path / "out", valid_share=0.2)
        assert data.classes() == ["World", "Sports", "Business", "Sci/Tech"]
        assert len(data.split("valid")) == 8
        for ids, label in zip(data.split("test"), data.labels("test"), strict=True):
            words = data.vocabulary().decode(ids)
            assert f"k{label}" in words
            assert "title" in words

    def test_valid_share_of_0_makes_no_valid_split(self, tmp_path: Path) -> None:
        data = prepare("ag_news", ag_news(tmp_path / "in"), tmp_path / "out", valid_share=0)
        assert sorted(data.splits()) == ["test", "train"]
        assert len(data.split("train")) == 40

    def test_quoted_line_ends_become_spaces(self, tmp_path: Path) -> None:
        source = ag_news(tmp_path / "in")
        with open(source / "train.csv", "a") as file:
            file.write('"1","one\ntwo","three"\n')
        data = prepare("ag_news", source, tmp_path / "out", valid_share=0)
        assert len([*data.split("train")][-1]) == 4  # three words and the end

    @pytest.mark.parametrize("row", ['"5","t","d"', '"text",4', "alone", '"1","t"', "1,t\rt,d"])
    def test_malformed_rows_are_refused(self, row: str, tmp_path: Path) -> None:
        source = ag_news(tmp_path / "in")
        with open(source / "train.csv", "a") as file:
            file.write(row + "\n")
        with pytest.raises(UserError, match=r"Line 41 of .*train\.csv"):
            prepare("ag_news", source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestCifar:
    def test_valid_share_of_0_makes_no_valid_split(self, tmp_path: Path) -> None:
        pixels, labels = np.zeros((10, 32, 32), dtype=np.uint8), np.arange(10) % 2
        np.savez(tmp_path / "train.npz", image=pixels, label=labels)
        np.savez(tmp_path / "test.npz", image=pixels, label=labels)
        data = prepare("lra_image", tmp_path, tmp_path / "out", valid_share=0)
        assert sorted(data.splits()) == ["test", "train"]
        assert len(data.split("train")) == 10

    def test_every_source_format_gives_the_same_data_bin(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
        batches = {
            name: (random.integers(0, 256, (8, 3072), dtype=np.uint8), random.integers(10, size=8)) for name in names
        }
        encoded: dict[str, Callable[[str], bytes]] = {
            "binary": lambda name: np.insert(batches[name][0], 0, batches[name][1], axis=1).astype(np.uint8).tobytes(),
            "python": lambda name: pickle.dumps(
                {"data": batches[name][0], "labels": batches[name][1].tolist()}, protocol=2
            ),
        }
        made = []
        for kind, encode in encoded.items():
            suffix = ".bin" if kind == "binary" else ""
            folder = tmp_path / kind
            folder.mkdir()
            with tarfile.open(folder / f"cifar-10-{kind}.tar.gz", "w:gz") as archive:
                for name in names:
                    info = tarfile.TarInfo(f"cifar-10-batches/{name}{suffix}")
                    info.size = len(encode(name))
                    archive.addfile(info, io.BytesIO(encode(name)))
                    (tmp_path / f"{kind}-unpacked").mkdir(exist_ok=True)
                    (tmp_path / f"{kind}-unpacked" / f"{name}{suffix}").write_bytes(encode(name))
            made += [
                prepare("lra_image", tmp_path / place, tmp_path / f"out-{place}")
                for place in (kind, f"{kind}-unpacked")
            ]
        assert all(contents(data) == contents(made[0]) for data in made)
        assert {split: len(made[0].split(split)) for split in made[0].splits()} == {"train": 36, "valid": 4, "test": 8}
        first = made[0].split("test")[0]
        red, green, blue = batches["test_batch"][0][0].reshape(3, 1024).astype(float)
        assert len(first) == 1025
        assert np.abs((first[:-1] - 4) - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 0.5001
        assert made[0].vocabulary().tokens[4:] == list(map(str, range(256)))

    def test_pickle_of_a_different_object_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
            (tmp_path / "in" / name).write_bytes(pickle.dumps(print))
        with pytest.raises(UserError, match="not unpickle"):
            prepare("lra_image", tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestDownloads:
    @pytest.mark.parametrize("published", [True, False])
    def test_files_are_downloaded_and_verified(self, published: bool, shelf: Shelf, tmp_path: Path) -> None:
        """Files that differ from the published ones are refused."""
        source = ag_news(tmp_path / "in")
        shelf.files = {path.name: Served(path.read_bytes()) for path in source.iterdir()}
        files = tuple(replace(file, digest=None) for file in LABELLED["ag_news"].files)
        corpus = replace(LABELLED["ag_news"], counts={}, files=LABELLED["ag_news"].files if published else files)
        config = corpus.config(mirror=shelf.url, downloads=str(tmp_path / "downloads"), workers=1)
        if published:
            with pytest.raises(UserError, match="differs from the published"):
                prepare_labelled(config, tmp_path / "out", corpus=corpus, reporter=Reporter())
            assert not (tmp_path / "out").exists()
            return
        prepare_labelled(config, tmp_path / "out", corpus=corpus, reporter=Reporter())
        assert contents(DataBin(tmp_path / "out")) == contents(prepare("ag_news", source, tmp_path / "again"))


class TestRetrieval:
    def test_each_pair_has_two_sides_and_a_label(self, tmp_path: Path) -> None:
        (tmp_path / "tsv_data").mkdir()
        for split, count in (("train", 6), ("eval", 2), ("test", 3)):
            rows = [f'{n % 2}.0\tA{n}\tB{n}\tfirst "{n}\tsecond {n}\n' for n in range(count)]
            (tmp_path / "tsv_data" / f"new_aan_pairs.{split}.tsv").write_text("".join(rows))
        data = prepare("lra_retrieval", tmp_path, tmp_path / "out", {"train": 6})
        assert (data.source_lang, data.target_lang) == ("first", "second")
        assert data.labels("train").tolist() == [0, 1, 0, 1, 0, 1]
        assert [len(data.split("test", side)) for side in ("first", "second")] == [3, 3]
        assert data.vocabulary("first") == data.vocabulary("second")

    def test_error_names_the_line_with_wrong_columns(self, tmp_path: Path) -> None:
        (tmp_path / "new_aan_pairs.train.tsv").write_text("1\ta\tb\tx\ty\n2\ta\tb\tx\ty\n")
        with pytest.raises(UserError, match=r"Line 2 of .*train\.tsv"):
            prepare("lra_retrieval", tmp_path, tmp_path / "out")


class TestOfficialSets:
    def test_listops_files_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "listops-1000").mkdir()
        for split in ("train", "val", "test"):
            text = "Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n( ( ( [MIN 2 ) 9 ) ] )\t2\n"
            (tmp_path / "listops-1000" / f"basic_{split}.tsv").write_text(text)
        report = prepare_listops(ListOpsConfig(source=str(tmp_path)), tmp_path / "out", reporter=Reporter())
        data = DataBin(tmp_path / "out")
        assert data.vocabulary().decode(data.split("valid")[0]) == ["[MAX", "2", "9", "]"]
        assert data.labels("valid").tolist() == [9, 2]
        assert "root operator 100.0%" in report

    @pytest.mark.parametrize("numpy", [False, True])
    def test_pathfinder_images_are_read(self, numpy: bool, tmp_path: Path) -> None:
        level = tmp_path / "lra_release" / "pathfinder32" / "curv_contour_length_14"
        images = np.random.default_rng(0).integers(0, 256, (30, 32, 32), dtype=np.uint8)
        for batch in (0, 1, 10):
            (level / "imgs" / str(batch)).mkdir(parents=True)
        (level / "metadata").mkdir()
        for batch, start in ((0, 0), (1, 10), (10, 20)):
            rows = [[f"imgs/{batch}", f"s_{k}.png", k, int(images[start + k].sum() % 2), 1.0] for k in range(10)]
            for k in range(10):
                (level / "imgs" / str(batch) / f"s_{k}.png").write_bytes(write_png(images[start + k]))
            if numpy:
                np.save(level / "metadata" / f"{batch}.npy", np.array(rows))
            else:
                (level / "metadata" / f"{batch}.npy").write_text("".join(" ".join(map(str, r)) + "\n" for r in rows))
        (level / "imgs" / "10" / "s_3.png").write_bytes(b"")
        prepare_pathfinder(PathfinderConfig(source=str(tmp_path), workers=1), tmp_path / "out", reporter=Reporter())
        data = DataBin(tmp_path / "out")
        assert sum(len(data.split(split)) for split in data.splits()) == 29
        for split in data.splits():
            for ids, label in zip(data.split(split), data.labels(split), strict=True):
                assert (ids[:-1] - 4).sum() % 2 == label

    def test_arrays_of_objects_are_refused(self, tmp_path: Path) -> None:
        level = tmp_path / "pathfinder32" / "curv_contour_length_14"
        (level / "metadata").mkdir(parents=True)
        np.save(level / "metadata" / "0.npy", np.array([[print, 1, 2, 3]], dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match="would have to be unpickled"):
            prepare_pathfinder(PathfinderConfig(source=str(tmp_path)), tmp_path / "out", reporter=Reporter())
        assert not (tmp_path / "out").exists()

    def test_images_outside_the_folder_are_refused(self, tmp_path: Path) -> None:
        level = tmp_path / "pathfinder32" / "curv_contour_length_14"
        (level / "metadata").mkdir(parents=True)
        (level / "metadata" / "0.npy").write_text("../../x s.png 0 1\n")
        with pytest.raises(UserError, match="outside its folder"):
            prepare_pathfinder(PathfinderConfig(source=str(tmp_path)), tmp_path / "out", reporter=Reporter())


def test_held_out_examples_depend_on_the_seed_only() -> None:
    one, same, other = held_out(1000, 0.1, 1), held_out(1000, 0.1, 1), held_out(1000, 0.1, 2)
    assert one.sum() == 100
    assert (one == same).all()
    assert (one != other).any()
    with pytest.raises(UserError, match=r"valid_share=0\.01"):
        held_out(10, 0.01, 1)


def test_real_ag_news_is_prepared(real_data: Path, tmp_path: Path) -> None:
    data = prepare("ag_news", real_data / "agnews", tmp_path / "out", dict(LABELLED["ag_news"].counts))
    assert [len(data.split(split)) for split in ("train", "valid", "test")] == [4500, 500, 7600]
    assert np.bincount(data.labels("test")).tolist() == [1900] * 4


@pytest.mark.slow
def test_real_imdb_is_prepared_as_bytes(real_data: Path, tmp_path: Path) -> None:
    data = prepare("lra_text", real_data / "imdb", tmp_path / "out", dict(LABELLED["imdb"].counts))
    assert [len(data.split(split)) for split in ("train", "valid", "test")] == [22_500, 2_500, 25_000]
    assert data.split("train").sizes.max() == 13_704 + 1


@pytest.mark.slow
def test_real_cifar10_is_prepared(real_data: Path, tmp_path: Path) -> None:
    data = prepare("lra_image", real_data / "cifar10_gray", tmp_path / "out", dict(LABELLED["lra_image"].counts))
    assert np.bincount(data.labels("test")).tolist() == [1000] * 10
    assert len(data.split("train")) == 45_000
