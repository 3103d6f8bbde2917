"""Labeled text files: every format gives the same examples, and errors name the line."""

import gzip
import json
from pathlib import Path

import pytest

from seqtk.data.labelled_text import Columns, read_labelled
from seqtk.data.sources import LabelledSource, LabelledSourceConfig
from seqtk.utils.errors import UserError

ROWS = [("a b", "yes"), ('say "hi", twice', "no"), ("", "yes"), ("café", "no")]


def write(folder: Path, ending: str, *, header: bool = True, rows: list[tuple[str, str]] = ROWS) -> str:
    path = folder / f"texts.{ending}"
    if "jsonl" in ending:
        lines = [json.dumps({"text": text, "label": label, "more": 1}) for text, label in rows]
    elif "csv" in ending:
        lines = ["label,text"] * header + ['{},"{}"'.format(label, text.replace('"', '""')) for text, label in rows]
    else:
        lines = ["label\ttext"] * header + [f"{label}\t{text}" for text, label in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    return str(path)


def read(path: str, columns: Columns | None = None) -> list[tuple[str, str]]:
    return [(example.texts[0], example.label) for example in read_labelled(path, columns or Columns())]


class TestFormats:
    @pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "tsv.gz", "csv.gz", "jsonl.gz", "txt"])
    def test_every_format_gives_the_same_examples(self, ending: str, tmp_path: Path) -> None:
        assert read(write(tmp_path, ending)) == ROWS

    @pytest.mark.parametrize("ending", ["tsv", "csv"])
    def test_files_with_numeric_column_names_have_no_header(self, ending: str, tmp_path: Path) -> None:
        path = write(tmp_path, ending, header=False)
        assert read(path, Columns(text=("2",), label="1")) == ROWS

    def test_quoted_fields_may_span_lines(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text('label,text\nyes,"one\ntwo"\nno,x\n')
        examples = list(read_labelled(str(tmp_path / "a.csv"), Columns()))
        assert [(example.line, example.texts) for example in examples] == [(3, ("one two",)), (4, ("x",))]

    def test_second_column_gives_a_second_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.tsv").write_text("first\tsecond\tlabel\na\tb\t1\n")
        (example,) = read_labelled(str(tmp_path / "a.tsv"), Columns(text=("first",), second="second"))
        assert (example.texts, example.label) == (("a", "b"), "1")


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.tsv", "label\ttext\nyes\ta\nno\n", "Line 3"),
            ("a.tsv", "label\ttext\nyes\ta\n \ta\n", "Line 3"),
            ("a.tsv", "lable\ttext\nyes\ta\n", "label"),
            ("a.csv", 'label,text\nyes,"a\n', "Line 2"),
            ("a.csv", 'label,text\nyes,a\nyes,"a\nno,b\nno,c\n', "Line 3"),
            ("a.csv", 'label,text\nyes,"a"b\nno,c\n', "Line 2"),
            ("a.csv", "label,text,text\nyes,a,b\n", "'text' twice"),
            ("a.jsonl", '{"text": "a", "label": "yes"}\n{"text": "a"}\n', "Line 2"),
            ("a.jsonl", '{"text": "a", "label": "yes"}\nno json\n', "Line 2"),
            ("a.jsonl", '{"text": ["a"], "label": "yes"}\n', "Line 1"),
            ("a.jsonl", "[1]\n", "Line 1"),
            ("a.jsonl", '{"text": "a", "label": "\\ud800"}\n', "Line 1"),
            ("a.jsonl", '{"text": "a\\u0000", "label": "yes"}\n', "Line 1"),
            ("a.tsv", "", "a.tsv"),
            ("a.tsv", "label\ttext\n", "no examples"),
            ("a.tsv", "label\ttext\nyes\t\x00\n", "Line 2"),
        ],
    )
    def test_errors_name_the_line(self, name: str, content: str, words: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=words) as caught:
            read(str(tmp_path / name))
        assert len(str(caught.value).splitlines()) <= 3

    def test_empty_list_of_text_columns_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"(?s)columns\.text=\[\].*in seqtk-train, task\.source\.text="):
            read(write(tmp_path, "tsv"), Columns(text=()))

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"none\.tsv"):
            read(str(tmp_path / "none.tsv"))


class TestSource:
    def source(self, folder: Path, **settings: str) -> LabelledSource:
        return LabelledSource(LabelledSourceConfig(**settings), data=str(folder))  # type: ignore[arg-type]

    def test_each_split_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "train.tsv").write_text("text\tlabel\na b\t10\nb\t9\n")
        (tmp_path / "test.jsonl").write_text('{"text": "a c", "label": 9}\n')
        source = self.source(tmp_path)
        assert source.classes() == ["9", "10"]
        assert source.labels("train").tolist() == [1, 0]
        assert source.labels("test").tolist() == [0]
        assert [source.vocabulary("text").tokens[id_] for id_ in source.split("test", "text")[0]] == [
            "a",
            "<unk>",
            "</s>",
        ]
        with pytest.raises(UserError, match="valid"):
            source.labels("valid")

    def test_error_names_the_line_of_an_unknown_class(self, tmp_path: Path) -> None:
        (tmp_path / "train.tsv").write_text("text\tlabel\na\tx\nb\ty\n")
        (tmp_path / "test.tsv").write_text("text\tlabel\na\tx\nb\tz\n")
        with pytest.raises(UserError, match=r"Line 3 of .*'z'"):
            self.source(tmp_path).labels("test")

    def test_vocabulary_is_built_from_the_training_file(self, tmp_path: Path) -> None:
        (tmp_path / "train.tsv").write_text("text\tlabel\nab a\tx\nb\ty\n")
        for tokens, length in (("words", 3), ("characters", 5), ("bytes", 5)):
            assert self.source(tmp_path, tokens=tokens).split("train", "text").sizes[0] == length
