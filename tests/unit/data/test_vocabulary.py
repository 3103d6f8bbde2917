"""Vocabularies: order, special symbols, dictionary files and their errors."""

from pathlib import Path

import numpy as np
import pytest

from seqtk.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from seqtk.utils.errors import UserError


def test_special_symbols_come_first_as_in_fairseq() -> None:
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.tokens == ["<s>", "<pad>", "</s>", "<unk>", "a", "b"]
    assert tuple(map(vocabulary.id, vocabulary.tokens[:4])) == (BOS, PAD, EOS, UNK)
    assert len(vocabulary) == 6


def test_encode_ends_in_eos() -> None:
    vocabulary = Vocabulary(["a", "b"])
    ids = vocabulary.encode(["b", "zz", "a"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [5, UNK, 4, EOS]
    assert vocabulary.encode([], eos=False).tolist() == []


def test_decode_omits_special_symbols_except_unk() -> None:
    assert Vocabulary(["a"]).decode(np.array([BOS, 4, UNK, EOS, PAD])) == ["a", "<unk>"]


def test_special_symbols_in_text_are_not_added_again() -> None:
    vocabulary = Vocabulary.from_counts({"<unk>": 9, "</s>": 5, "a": 1}, padding_factor=1)
    assert vocabulary.tokens[4:] == ["a"]


def test_fillers_bos_and_pad_are_never_generated() -> None:
    vocabulary = Vocabulary.from_counts({"a": 1, "madeupword0000": 3, "madeupwords": 2}, padding_factor=8)
    assert vocabulary.tokens[4:] == ["madeupword0000", "madeupwords", "a", "madeupword0001"]
    assert vocabulary.never_generated == [BOS, PAD, 4, 7]


def test_loaded_vocabulary_equals_the_saved_one(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["a", "\u00a0", "日本", "▁x"], [4, 3, 2, 0])
    vocabulary.save(tmp_path / "dict.txt")
    again = Vocabulary.load(tmp_path / "dict.txt")
    assert again == vocabulary
    assert again.counts == vocabulary.counts
    assert [path.name for path in tmp_path.iterdir()] == ["dict.txt"]


def test_windows_line_ends_and_spaces_are_read() -> None:
    vocabulary = Vocabulary.from_text("a 5\r\nb c 3\r\n")
    assert vocabulary.tokens[4:] == ["a", "b c"]
    assert vocabulary.counts[4:] == [5, 3]


def test_overwrite_flag_replaces_an_earlier_token() -> None:
    text = "a 5\nb 3\na 1 #fairseq:overwrite\n"
    vocabulary = Vocabulary.from_text(text)
    assert (len(vocabulary), vocabulary.id("a")) == (7, 6)
    assert vocabulary.to_text() == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a 5\nb 1\na 3\n", "Line 3 .* repeats the token 'a'"),
        ("<pad> 5\n", "repeats"),
        ("a 5\nb\n", "Line 2"),
        ("a x\n", "Line 1"),
    ],
)
def test_error_names_the_malformed_line(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Vocabulary.from_text(text)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dictionary"):
        Vocabulary.load(tmp_path / "dict.txt")
    (tmp_path / "dict.txt").write_bytes(b"\xff\xfe 3\n")
    with pytest.raises(UserError, match="UTF-8"):
        Vocabulary.load(tmp_path / "dict.txt")
