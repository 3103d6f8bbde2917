"""Fast look-up of words in a block of text, compared with Python's split and dictionaries."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.data.encoding import WordEncoder
from seqtk.data.vocabulary import Vocabulary
from seqtk.data.word_lookup import WordCounter, WordTable, lowercase_block, lowercase_words, narrow_spaces

WHITE_SPACE = [chr(code) for code in range(0x110000) if chr(code).isspace() and chr(code) != "\n"]
LETTERS = ["a", "b", "\0", "\x01", "ä", "▁", "“", "\u2060", "\U0001f600", "</s>", "1234567", "abcdefgh"]
TEXTS = st.text("".join(WHITE_SPACE)) | st.lists(st.sampled_from([*LETTERS, *WHITE_SPACE, " ", "\n"]), max_size=60).map(
    "".join
)


def _split_keeping_ends(text: str) -> list[bytes]:
    parts = text.encode("utf-8").split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


@given(text=TEXTS, known=st.sets(st.sampled_from(range(40))))
@settings(max_examples=150)
def test_words_equal_python_split(text: str, known: set[int]) -> None:
    lines = _split_keeping_ends(text)
    words = sorted(set(text.split()) - {"</s>"})
    vocabulary = Vocabulary([word for number, word in enumerate(words) if number in known])
    found = WordEncoder(vocabulary).encode(text.encode("utf-8"))
    if not lines:
        return
    expected = [vocabulary.encode(line.decode("utf-8").split(), eos=False).tolist() for line in lines]
    assert found.sizes.tolist() == list(map(len, expected))
    assert found.ids.tolist() == [id_ for item in expected for id_ in item]


@given(blocks=st.lists(TEXTS, max_size=6))
@settings(max_examples=60)
def test_counts_equal_python_counter(blocks: list[str]) -> None:
    counter = WordCounter()
    for text in blocks:
        if lines := _split_keeping_ends(text):
            assert counter(b"".join(lines)) == Counter(word.encode("utf-8") for word in text.split())


def test_words_with_equal_prefixes_are_distinguished() -> None:
    words = [b"a", b"a\0", b"a\0\0", b"12345678", b"123456789", b"123456789012345", b"1234567890123456", b"\xff" * 15]
    table = WordTable(words, range(len(words)), missing=-1)
    absent = [b"b", b"1234567", b"1234567890123456x", b"123456789012346", b"a\0\0\0"]
    assert table.find(b" ".join(words + absent) + b"\n")[0].tolist() == [*range(len(words)), *[-1] * len(absent)]


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_large_word_table_finds_every_word(count: int) -> None:
    words = [str(number * 7919).encode() for number in range(count)]
    table = WordTable(words, range(count), missing=-1)
    values, starts, ends = table.find(b" ".join([*words, b"none"]) + b"\n")
    assert values.tolist() == [*range(count), -1]
    assert (ends - starts).tolist() == list(map(len, [*words, b"none"]))


def test_narrow_spaces_replaces_spaces_and_adds_line_feed() -> None:
    assert narrow_spaces(b"a\nb") == b"a\nb\n"
    assert narrow_spaces(b"a\xe2\x80\xa8b\xc2\xa0c\n") == b"a b c\n"


class TestLowercaseWords:
    def test_punctuation_separates_words(self) -> None:
        assert lowercase_words("Don't STOP_it: «Ärger»,\nx2!") == "don't stop it ärger \nx2 "

    def test_block_and_line_give_equal_words(self) -> None:
        text = "İstanbul\u2028is A_b\rnice\x1cCity\u00a0now\n'tis ẞ Ⅷ\n"
        lines = [lowercase_words(line).split() for line in text.removesuffix("\n").split("\n")]
        block = lowercase_block(text.encode()).decode().removesuffix("\n").split("\n")
        assert [line.split() for line in block] == lines
