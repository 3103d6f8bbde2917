"""Dictionaries and data-bins equal the files that fairseq wrote, and fairseq's files are read without conversion."""

import json
from pathlib import Path
from typing import Any

import pytest

from seqtk.data.indexed import IndexedDataset
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.sources.databin import DataBin
from seqtk.data.vocabulary import EOS, SPECIALS, UNK, Vocabulary
from seqtk.data.word_lookup import WordCounter

EXAMPLE_IDX = (
    "4d4d494449445800 00 0100000000000000 08 0300000000000000 04000000 03000000 01000000"
    "0000000000000000 0800000000000000 0e00000000000000"
)
EXAMPLE_BIN = "0500 0900 0700 0200 0300 0500 0200 0200"


def test_documented_example_gives_the_documented_bytes(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in "dafcgbe"))
    (tmp_path / "text").write_text("a b c\nzz a\n\n")
    preprocess(
        PreprocessConfig(
            test=(f"{tmp_path}/text",), tokens="words", source_dict=f"{tmp_path}/dict.txt", destdir=f"{tmp_path}/bin"
        )
    )
    index, data = (tmp_path / "bin" / "test.idx").read_bytes(), (tmp_path / "bin" / "test.bin").read_bytes()
    dataset = IndexedDataset(tmp_path / "bin" / "test")
    assert [dataset[i].tolist() for i in range(3)] == [[5, 9, 7, 2], [3, 5, 2], [2]]
    assert index == bytes.fromhex(EXAMPLE_IDX)
    assert data == bytes.fromhex(EXAMPLE_BIN)


@pytest.mark.parametrize("number", range(8))
def test_dictionaries_equal_fairseq(golden: Path, number: int) -> None:
    table = json.loads((golden / "tables.json").read_text(encoding="utf-8"))["dictionary"]
    case = table["cases"][number]
    counts = WordCounter()(table["text"].encode("utf-8"))
    vocabulary = Vocabulary.from_counts(
        {word.decode("utf-8"): count for word, count in counts.items()},
        threshold=case["threshold"],
        nwords=case["nwords"],
        padding_factor=case["padding_factor"],
    )
    assert vocabulary.to_text() == case["dict_txt"]
    assert vocabulary.tokens == case["symbols"]
    if number == len(table["cases"]) - 1:
        for example in table["encoded_with_the_last_case"]:
            words = example["line"].split()
            # fairseq reads a word "<pad>" of the text as padding; seqtk reads it as an unknown word.
            ids = [
                UNK if word in SPECIALS else id_ for word, id_ in zip(words, example["ids_without_eos"], strict=True)
            ]
            assert vocabulary.encode(words).tolist() == [*ids, EOS]
            assert vocabulary.encode(words, eos=False).tolist() == ids


@pytest.mark.parametrize(
    ("name", "suffix", "settings"),
    [
        ("joined", "", {"source_lang": "en", "target_lang": "de", "nwords": 440}),
        ("separate", "", {"source_lang": "en", "target_lang": "de", "threshold": 8, "joint": False}),
        ("lm", ".en", {}),
    ],
)
def test_tokenized_text_gives_the_files_of_fairseq(
    golden: Path, tmp_path: Path, name: str, suffix: str, settings: dict[str, Any]
) -> None:
    preprocess(
        PreprocessConfig(
            train=f"{golden}/text/train.spm{suffix}",
            valid=(f"{golden}/text/valid.spm{suffix}",),
            test=(f"{golden}/text/test.spm{suffix}",),
            tokens="words",
            destdir=f"{tmp_path}/bin",
            workers=1,
            **settings,
        )
    )
    assert_same_files(golden / "data-bin" / name, tmp_path / "bin")


def preprocess_raw_text(golden: Path, destdir: Path, **settings: Any) -> None:
    preprocess(
        PreprocessConfig(
            source_lang="en",
            target_lang="de",
            valid=(f"{golden}/text/valid",),
            sentencepiece=f"{golden}/text/spm.model",
            destdir=str(destdir),
            workers=1,
            **settings,
        )
    )


def test_raw_text_gives_the_files_of_fairseq(golden: Path, tmp_path: Path) -> None:
    joined = golden / "data-bin" / "joined"
    preprocess_raw_text(golden, tmp_path / "bin", test=(f"{golden}/text/test",), source_dict=f"{joined}/dict.en.txt")
    assert_same_files(joined, tmp_path / "bin", skip="train")


def test_vocabulary_equals_the_sentencepiece_vocab_file(golden: Path, tmp_path: Path) -> None:
    preprocess_raw_text(golden, tmp_path / "bin")
    rows = (golden / "text" / "spm.vocab").read_text(encoding="utf-8").split("\n")[3:-1]
    tokens = DataBin(tmp_path / "bin").vocabulary("en").tokens[4:]
    assert tokens[: len(rows)] == [row.split("\t")[0] for row in rows]
    assert all(token.startswith("madeupword") for token in tokens[len(rows) :])
    assert (len(tokens) + 4) % 8 == 0


def test_published_data_bin_is_reproduced(real_data: Path, tmp_path: Path) -> None:
    original = real_data / "fairseq_format" / "mmap_tr-en"
    preprocess(
        PreprocessConfig(
            source_lang="tr",
            target_lang="en",
            valid=(f"{original}/tokenized/valid",),
            test=(f"{original}/tokenized/test",),
            tokens="words",
            joint=False,
            source_dict=f"{original}/dict.tr.txt",
            target_dict=f"{original}/dict.en.txt",
            destdir=f"{tmp_path}/bin",
            workers=1,
        )
    )
    assert_same_files(original, tmp_path / "bin", skip="train")


def test_published_data_bin_is_read(real_data: Path) -> None:
    directory = real_data / "fairseq_format" / "mmap_tr-en"
    for data in (DataBin(directory), DataBin(directory, source_lang="en")):
        assert {data.source_lang, data.target_lang} == {"tr", "en"}
        assert [len(data.split(name, "tr")) for name in ("train", "valid", "test")] == [50_478, 2_812, 2_870]
    lines = (directory / "tokenized" / "valid.en").read_text(encoding="utf-8").split("\n")
    data = DataBin(directory)
    vocabulary, items = data.vocabulary("en"), data.split("valid", "en")
    for i in (0, 17, 2_811):
        assert items[i].tolist() == vocabulary.encode(lines[i].split()).tolist()
        assert items.sizes[i] == len(items[i])


def test_data_bin_in_the_older_format_is_read(real_data: Path) -> None:
    data = DataBin(real_data / "fairseq_format" / "legacy_de-en", remove_bpe="@@ ")
    assert (data.source_lang, data.target_lang, data.splits()) == ("de", "en", ["test", "valid"])
    vocabulary, items = data.vocabulary("en"), data.split("valid", "en")
    assert (len(items), len(data.split("test", "de"))) == (7_283, 6_750)
    assert data.tokenizer("en").separator == "@@ "
    assert all(items[i][-1] == 2 and items[i].max() < len(vocabulary) for i in range(0, len(items), 500))
    assert int(items.sizes.sum()) * 4 == (data.directory / "valid.de-en.en.bin").stat().st_size
    line = data.tokenizer("en").decode(vocabulary.decode(items[0]))
    assert "@@" not in line
    assert len(line.split()) > 2


def assert_same_files(expected: Path, made: Path, *, skip: str | None = None) -> None:
    """Compares the files of two folders byte by byte, except files whose names start with `skip`."""
    names = [path.name for path in expected.iterdir() if path.is_file()]
    names = [name for name in names if skip is None or not name.startswith(skip)]
    assert len(names) >= 7
    for name in names:
        assert (made / name).read_bytes() == (expected / name).read_bytes(), name
