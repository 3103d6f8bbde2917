"""Monolingual text: bytes and characters are kept exactly, and the size of the text is recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtk.data.char_tokenizer import (
    byte_vocabulary,
    bytes_to_names,
    characters_to_names,
    names_to_bytes,
    names_to_characters,
    symbols,
)
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.report import TextCount
from seqtk.data.sources.databin import RECORD, DataBin
from seqtk.data.vocabulary import EOS, UNK, Vocabulary
from seqtk.utils.errors import UserError

TEXT = "Über \u2028 den\tFluß.\r\n\n  zwei  \nà la <unk> fin"
BYTES = bytes(range(256)) + b"\n\xff\n\n end"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "train").write_bytes(TEXT.encode())
    (tmp_path / "valid").write_bytes("den Fluß ☃\n\n".encode())
    (tmp_path / "bytes").write_bytes(BYTES)
    return tmp_path


def config(text: Path, **changes: Any) -> PreprocessConfig:
    start = PreprocessConfig(train=f"{text}/train", valid=(f"{text}/valid",), destdir=f"{text}/bin", workers=1)
    return replace(start, **changes)


def stream(text: Path, split: str = "train") -> list[int]:
    items = DataBin(text / "bin").split(split)
    return items.stream(0, items.total).tolist()


def test_every_byte_is_kept(text: Path) -> None:
    report = preprocess(config(text, tokens="bytes", train=f"{text}/bytes"), block_bytes=100)
    assert bytes(id_ - 4 for id_ in stream(text)) == BYTES
    data = DataBin(text / "bin")
    assert data.vocabulary() == byte_vocabulary()
    assert sum(data.vocabulary().counts) == len(BYTES)
    assert len(data.vocabulary()) == 260
    assert report.splits["train"].lines == len(BYTES.splitlines(keepends=True)) - 1  # a carriage return ends no line
    assert data.tokenizer().decode(data.vocabulary().decode(stream(text, "valid"))) == "den Fluß ☃\n\n"


def test_every_character_is_kept(text: Path) -> None:
    preprocess(config(text, tokens="characters"), block_bytes=10)
    data = DataBin(text / "bin")
    vocabulary = data.vocabulary()
    assert data.tokenizer().decode(vocabulary.decode(stream(text))) == TEXT
    assert len(stream(text)) == len(TEXT)
    assert len(vocabulary) % 8 == 0
    assert {"<U+000A>", "<U+0020>", "<U+2028>", "ß"} <= set(vocabulary.tokens)
    valid = stream(text, "valid")
    assert valid.count(UNK) == 1
    assert data.tokenizer().decode(vocabulary.decode(valid)) == "den Fluß \ufffd\n\n"
    assert vocabulary.encode(data.tokenizer().encode("den\n"), eos=False).tolist() == [*valid[:3], valid[-1]]


@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_eos_replaces_line_feeds(text: Path, tokens: str) -> None:
    preprocess(config(text, tokens=tokens, line_end="eos"))
    data = DataBin(text / "bin")
    items = data.split("train")
    lines = [data.tokenizer().decode(data.vocabulary().decode(items[index])) for index in range(len(items))]
    assert lines == [line.rstrip("\r") for line in TEXT.split("\n")]
    assert all(items[index][-1] == EOS for index in range(len(items)))


def test_parallel_text_may_be_tokenized_into_bytes(text: Path) -> None:
    for lang in ("en", "de"):
        (text / f"pairs.{lang}").write_text(f"ä {lang}\n")
    preprocess(config(text, tokens="bytes", source_lang="en", target_lang="de", train=f"{text}/pairs", valid=()))
    data = DataBin(text / "bin")
    assert data.split("train", "en")[0].tolist() == [*(4 + byte for byte in "ä en".encode()), EOS]
    assert data.tokenizer("de").decode(data.vocabulary("de").decode(data.split("train", "de")[0])) == "ä de"


@pytest.mark.parametrize("tokens", ["bytes", "characters", "words"])
def test_output_does_not_depend_on_blocks_and_workers(text: Path, tokens: str) -> None:
    made = []
    for name, workers, block_bytes in (("one", 1, 1 << 20), ("two", 2, 1)):
        preprocess(config(text, tokens=tokens, destdir=f"{text}/{name}", workers=workers), block_bytes=block_bytes)
        made.append({path.name: path.read_bytes() for path in (text / name).iterdir()})
    assert made[0] == made[1]


@pytest.mark.parametrize("tokens", ["bytes", "words"])
def test_the_size_of_the_text_is_recorded(text: Path, tokens: str) -> None:
    preprocess(config(text, tokens=tokens))
    recorded = json.loads((text / "bin" / RECORD).read_text())["splits"]["train"]["text"]
    whole = TextCount(lines=4, bytes=len(TEXT.encode()), characters=len(TEXT), words=len(TEXT.split()))
    assert TextCount(**recorded) == whole
    kept = TEXT if tokens == "bytes" else "\n".join(" ".join(line.split()) for line in TEXT.split("\n"))
    counted = DataBin(text / "bin").text_count("train")
    assert counted is not None
    assert (counted.bytes, counted.characters) == (len(kept.encode()), len(kept))
    assert DataBin(text / "bin").text_count("test") is None
    assert len(DataBin(text / "bin").split("train")) == 4  # empty lines are kept


def test_text_size_is_unknown_if_lines_were_dropped(text: Path) -> None:
    preprocess(config(text, tokens="words", min_length=1))
    assert DataBin(text / "bin").text_count("train") is None
    assert DataBin(text / "bin").text_count("valid") is not None
    (text / "bin" / "preprocess.json").write_text("{")
    with pytest.raises(UserError, match="is not a valid record of seqtk-preprocess"):
        DataBin(text / "bin").text_count("train")


def test_text_size_is_unknown_if_it_was_not_recorded(text: Path) -> None:
    preprocess(config(text, tokens="words"))
    record = json.loads((text / "bin" / "preprocess.json").read_text())
    del record["splits"]["train"]["text"]
    (text / "bin" / "preprocess.json").write_text(json.dumps(record))
    assert DataBin(text / "bin").text_count("train") is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tokens": "words", "line_end": "newline"}, "line_end=newline requires bytes or characters"),
        ({"tokens": "bytes", "source_dict": "{text}/d"}, "tokens=bytes has a fixed vocabulary"),
        ({"tokens": "characters", "sentencepiece": "{text}/m"}, "tokens=characters uses no SentencePiece model"),
        ({"tokens": "characters", "train": "{text}/bytes"}, "is not UTF-8"),
        ({"tokens": "characters", "train": None}, "no training text"),
    ],
)
def test_errors_have_at_most_three_lines(text: Path, changes: dict[str, Any], complaint: str) -> None:
    filled = {key: value.format(text=text) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError, match=complaint) as error:
        preprocess(config(text, **filled))
    assert str(error.value).count("\n") < 3
    assert not (text / "bin").exists()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_token_names_convert_back_to_the_text(line: str) -> None:
    assert names_to_bytes(bytes_to_names(line)) == line
    names = characters_to_names(line)
    assert names_to_characters(names) == line
    vocabulary = Vocabulary(sorted(set(names)))
    assert Vocabulary.from_text(vocabulary.to_text()) == vocabulary  # every name can be written to a dictionary
    codes, sizes = symbols(line.encode(), characters=True, newlines=True)
    assert "".join(map(chr, codes)) == line
    assert int(sizes.sum()) == len(line)


def test_unknown_bytes_decode_to_replacement_characters(text: Path) -> None:
    assert names_to_bytes(["<0x61>", "<unk>", "<0xC3>"]) == "a\ufffd\ufffd"
    assert np.array_equal(symbols(b"a\r\nb", characters=False, newlines=False)[1], [1, 1])
