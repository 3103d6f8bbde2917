"""Labeled data-bins from text files: texts, classes and order are kept, and an error leaves no file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtk.cli.preprocess import main as preprocess_main
from seqtk.data.labelled import describe, preprocess_labelled
from seqtk.data.labelled_text import Columns
from seqtk.data.mixing import CorpusConfig
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.sources import DataBinSource, DataBinSourceConfig
from seqtk.tasks.classification import ClassificationConfig, ClassificationTask, MatchingConfig, MatchingTask
from seqtk.utils.errors import UserError


def write(folder: Path, name: str, *rows: str) -> str:
    (folder / name).write_text("".join(f"{row}\n" for row in rows))
    return str(folder / name)


def make(folder: Path, columns: Columns | None = None, **settings: Any) -> Path:
    destination = folder / "data-bin"
    config = PreprocessConfig(
        columns=columns or Columns(), tokens=settings.pop("tokens", "words"), destdir=str(destination), **settings
    )
    preprocess_labelled(config)
    return destination


class TestTexts:
    @pytest.fixture
    def made(self, tmp_path: Path) -> Path:
        train = write(tmp_path, "train.tsv", "text\tlabel", "a b\tyes", "\tno", "c\tyes")
        test = write(tmp_path, "test.tsv", "text\tlabel", "b b\tno")
        return make(tmp_path, train=train, test=(test,))

    def test_classes_and_order_are_kept(self, made: Path) -> None:
        source = DataBinSource(DataBinSourceConfig(), data=str(made))
        assert source.classes() == ["no", "yes"]
        assert source.labels("train").tolist() == [1, 0, 1]
        assert source.labels("test").tolist() == [0]
        assert source.split("train").sizes.tolist() == [3, 1, 2]

    def test_classification_task_reads_the_data_bin(self, made: Path) -> None:
        task = ClassificationTask(ClassificationConfig(data=str(made)))
        index, (ids,), label = task.dataset("train")[0]
        assert (index, task.text(ids), task.classes[label]) == (0, "a b", "yes")

    @pytest.mark.parametrize("tokens", ["bytes", "characters"])
    def test_texts_of_bytes_or_characters_end_in_eos(self, tokens: str, tmp_path: Path) -> None:
        train = write(tmp_path, "train.tsv", "text\tlabel", "ab c\tyes", "a\tno")
        source = DataBinSource(DataBinSourceConfig(), data=str(make(tmp_path, tokens=tokens, train=train)))
        assert source.split("train").sizes.tolist() == [5, 2]

    def test_integer_labels_are_sorted_by_value(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.csv", "text,label", "a,10", "b,9", "c,1")
        made = make(tmp_path, train=train)
        assert (made / "classes.txt").read_text() == "1\n9\n10\n"

    def test_negative_labels_are_sorted_by_value(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.csv", "text,label", "a,10", "b,2", "c,-1")
        assert (make(tmp_path, train=train) / "classes.txt").read_text() == "-1\n2\n10\n"

    def test_valid_share_determines_the_size_of_valid(self, tmp_path: Path) -> None:
        rows = [f"w{index}\t{index % 2}" for index in range(50)]
        source = DataBinSource(
            DataBinSourceConfig(),
            data=str(make(tmp_path, train=write(tmp_path, "train.tsv", "text\tlabel", *rows), valid_share=0.2)),
        )
        assert (len(source.labels("train")), len(source.labels("valid"))) == (40, 10)

    def test_workers_do_not_change_the_files(self, tmp_path: Path) -> None:
        rows = [f"word{index % 50} Other{index % 7}, end\t{index % 3}" for index in range(3000)]
        train = write(tmp_path, "train.tsv", "text\tlabel", *rows)
        made = []
        for workers in (1, 2):
            (tmp_path / str(workers)).mkdir()
            made.append(make(tmp_path / str(workers), train=train, workers=workers, tokens="lowercase_words"))
        for file in made[0].iterdir():
            assert file.read_bytes() == (made[1] / file.name).read_bytes(), file.name

    def test_several_text_columns_are_joined(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.csv", "1,one title,a text", "2,b,c")
        made = make(tmp_path, Columns(text=("2", "3"), label="1"), train=train)
        assert DataBinSource(DataBinSourceConfig(), data=str(made)).split("train").sizes.tolist() == [5, 3]

    def test_pairs_share_a_dictionary(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.tsv", "one\ttwo\tlabel", "a b\tb\t1", "c\td\t0")
        made = make(tmp_path, Columns(text=("one",), second="two"), train=train, valid=(train,))
        task = MatchingTask(MatchingConfig(data=str(made)))
        _, texts, label = task.dataset("valid")[0]
        assert [task.text(ids) for ids in texts] == ["a b", "b"]
        assert label == 1


class TestRefusals:
    def test_data_bin_with_a_different_dictionary_is_refused(self, tmp_path: Path) -> None:
        folders = [tmp_path / name for name in ("one", "other")]
        for folder, word in zip(folders, ("a", "z"), strict=True):
            folder.mkdir()
            make(folder, train=write(folder, "train.tsv", "text\tlabel", f"{word}\tyes", "b\tno"))
        task = ClassificationTask(ClassificationConfig(data=str(folders[0] / "data-bin")))
        with pytest.raises(UserError, match="dictionary"):
            task.open(str(folders[1] / "data-bin"))

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            (("text\tlabel", "a\tyes", "b\tmaybe"), r"Line 3 .*'maybe'"),
            (("text\tlabel", "a"), "Line 2"),
            (("words\tlabel", "a\tyes"), "no column 'text'"),
            ((), "no examples"),
        ],
    )
    def test_invalid_files_leave_no_data_bin(self, rows: tuple[str, ...], words: str, tmp_path: Path) -> None:
        train = write(tmp_path, "train.tsv", "text\tlabel", "a\tyes", "b\tno")
        test = write(tmp_path, "test.tsv", *rows)
        with pytest.raises(UserError, match=words):
            make(tmp_path, train=train, test=(test,))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["test.tsv", "train.tsv"]

    def test_training_data_with_one_class_are_refused(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.tsv", "text\tlabel", "a\tyes", "b\tyes")
        with pytest.raises(UserError, match="have the class 'yes'"):
            make(tmp_path, train=train)
        assert not (tmp_path / "data-bin").exists()

    @pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2], [0, 1, -1], [[0, 1, 0]], [0.0, 1.0, 0.0]])
    def test_invalid_label_arrays_are_refused(self, labels: list[Any], tmp_path: Path) -> None:
        made = make(tmp_path, train=write(tmp_path, "train.tsv", "text\tlabel", "a\tyes", "b\tno", "c\tno"))
        np.save(made / "train.labels.npy", np.array(labels))
        with pytest.raises(UserError, match=r"train\.labels\.npy"):
            DataBinSource(DataBinSourceConfig(), data=str(made)).labels("train")

    def test_class_names_that_are_not_utf8_are_refused(self, tmp_path: Path) -> None:
        made = make(tmp_path, train=write(tmp_path, "train.tsv", "text\tlabel", "a\tyes", "b\tno"))
        (made / "classes.txt").write_bytes(b"no\n\xe9\n")
        with pytest.raises(UserError, match=r"Line 2 of .*classes\.txt is not UTF-8"):
            DataBinSource(DataBinSourceConfig(), data=str(made)).classes()

    def test_max_length_with_labels_is_refused(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.tsv", "text\tlabel", "a\tyes")
        with pytest.raises(UserError, match="max_length="):
            make(tmp_path, train=train, max_length=3)

    def test_two_dictionaries_for_pairs_are_refused(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.tsv", "one\ttwo\tlabel", "a b\tb\t1", "c\td\t0")
        with pytest.raises(UserError, match="joint="):
            make(tmp_path, Columns(text=("one",), second="two"), train=train, joint=False)
        assert not (tmp_path / "data-bin").exists()

    def test_valid_share_without_labels_is_refused(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.txt", "a", "b")
        with pytest.raises(UserError, match="valid_share="):
            preprocess(PreprocessConfig(train=train, valid_share=0.5, tokens="words", destdir=str(tmp_path / "made")))
        assert not (tmp_path / "made").exists()

    def test_data_bin_is_replaced_only_with_overwrite(self, tmp_path: Path) -> None:
        train = write(tmp_path, "train.tsv", "text\tlabel", "a\tyes", "b\tno")
        make(tmp_path, train=train)
        with pytest.raises(UserError, match="overwrite=true"):
            make(tmp_path, train=train)
        make(tmp_path, train=train, overwrite=True)


def test_command_prints_lengths_and_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path, "train.tsv", "text\tlabel", "a b\tyes", "b\tno")
    preprocess_main([f"train={train}", "columns.label=label", "tokens=words", f"destdir={tmp_path / 'made'}"])
    output = capsys.readouterr().out
    assert "no 50.0%, yes 50.0%" in output


def test_report_lists_every_split(tmp_path: Path) -> None:
    train = write(tmp_path, "train.tsv", "text\tlabel", "a b\tyes", "b\tno")
    report = describe(make(tmp_path, train=train, valid=(train, train), test=(train,)))
    assert [line.split()[0] for line in report.splitlines()[1:5]] == ["train", "valid", "valid1", "test"]


def test_mixed_corpora_match_classes_by_name(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = write(tmp_path / "first", "train.tsv", "text\tlabel", "x y\tc", "x\tb", "y\ta")
    second = write(tmp_path / "second", "train.tsv", "text\tlabel", "y y\tc", "x x\tb")
    data = [
        make(tmp_path / "first", train=first),
        make(tmp_path / "second", train=second, source_dict=str(tmp_path / "first" / "data-bin" / "dict.txt")),
    ]
    mix = tuple(CorpusConfig(str(each)) for each in data)
    task = ClassificationTask(ClassificationConfig(data=str(data[0]), mix=mix))
    examples = task.epoch_examples(1, seed=1)
    read = {
        number: (task.text(ids), task.classes[label]) for number, (ids,), label in map(examples.__getitem__, range(5))
    }
    assert read == {0: ("x y", "c"), 1: ("x", "b"), 2: ("y", "a"), 3: ("y y", "c"), 4: ("x x", "b")}
    with pytest.raises(UserError, match=r"task\.mix: .* class that the model does not have: 'a'"):
        ClassificationTask(ClassificationConfig(data=str(data[1]), mix=mix)).epoch_examples(1, seed=1)


def test_shards_of_labeled_data_are_refused(tmp_path: Path) -> None:
    data = make(tmp_path, train=write(tmp_path, "train.tsv", "text\tlabel", "a\tyes", "b\tno"))
    with pytest.raises(UserError, match=r"several shards(.|\n)*task\.mix"):
        ClassificationTask(ClassificationConfig(data=f"{data},{data}"))


def test_balanced_class_weights_count_all_corpora(tmp_path: Path) -> None:
    """In an epoch of all corpora, each class has the same total weight."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = write(tmp_path / "first", "train.tsv", "text\tlabel", *["x\ta"] * 3, "y\tb")
    second = write(tmp_path / "second", "train.tsv", "text\tlabel", *["x\tb"] * 6, *["y\ta"] * 2)
    data = [
        make(tmp_path / "first", train=first),
        make(tmp_path / "second", train=second, source_dict=str(tmp_path / "first" / "data-bin" / "dict.txt")),
    ]
    for weight, mass in ((1.0, (5, 7)), (0.5, (4, 4))):
        mix = (CorpusConfig(str(data[0])), CorpusConfig(str(data[1]), weight=weight))
        task = ClassificationTask(ClassificationConfig(data=str(data[0]), mix=mix, class_weights="balanced"))
        assert task.class_weights == pytest.approx([sum(mass) / (2 * each) for each in mass])


def test_training_text_in_shards_gives_equal_examples(tmp_path: Path) -> None:
    """`shard_tokens` splits the text into several files. Examples and classes do not change."""
    rows = [f"{f'w{index % 7} ' * 2000}w{index}\t{index % 3}" for index in range(400)]  # seqtk reads 1 MiB at a time
    train = write(tmp_path, "train.tsv", "text\tlabel", *rows)
    made = []
    for name, settings in (("whole", {}), ("cut", {"shard_tokens": 200})):
        (tmp_path / name).mkdir()
        folder = make(tmp_path / name, train=train, valid_share=0.1, **settings)
        task = ClassificationTask(ClassificationConfig(data=str(folder)))
        made.append(
            [(task.text(ids), label) for _, (ids,), label in map(task.dataset("train").__getitem__, range(360))]
        )
    assert made[0] == made[1]
    assert len(list((tmp_path / "cut" / "data-bin").glob("train*.bin"))) == 3
