"""Tokenizers: SentencePiece models, and joining tokens to text."""

import pickle
import re
from pathlib import Path

import pytest

from seqtk.data.tokenizer import Tokenizer, likely_marker
from seqtk.data.tokenizer_training import train_tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError

LINES = [f"the {a} {b} sees a {c}".encode() for a in ("red", "blue") for b in ("dog", "cat") for c in ("bird", "fish")]


def _trained(
    vocab_size: int = 40, *, model_type: str = "bpe", hard: bool = False, byte_fallback: bool = False
) -> Tokenizer:
    return train_tokenizer(
        LINES,
        vocab_size=vocab_size,
        model_type=model_type,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        hard_vocab_limit=hard,
    )


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_decoded_pieces_equal_the_line(model_type: str) -> None:
    tokenizer = _trained(32, model_type=model_type)
    pieces = tokenizer.encode("the blue fish sees a dog")
    assert len(pieces) > 6
    assert tokenizer.decode(pieces) == "the blue fish sees a dog"
    assert set(pieces) <= set(tokenizer.vocabulary().tokens)


def test_vocabulary_has_the_pieces_in_order() -> None:
    tokenizer = _trained(40)
    assert len(tokenizer.vocabulary()) == 40
    assert tokenizer.vocabulary().tokens[4:] == [piece for piece in tokenizer.pieces() if piece is not None]
    assert tokenizer.pieces()[:3] == [None, None, None]


def test_training_twice_gives_the_same_model() -> None:
    for model_type in ("bpe", "unigram"):
        assert _trained(30, model_type=model_type).model_bytes == _trained(30, model_type=model_type).model_bytes


def test_byte_fallback_keeps_unknown_characters() -> None:
    tokenizer = _trained(300, byte_fallback=True)
    assert tokenizer.decode(tokenizer.encode("the Ω")) == "the Ω"


def test_small_text_gives_a_smaller_vocabulary() -> None:
    assert len(_trained(5000).vocabulary()) < 200
    with pytest.raises(UserError, match="vocab_size=5000") as error:
        _trained(5000, hard=True)
    largest = _suggested_size(error, r"The text is too small: set vocab_size to (\d+) or less\.")
    with pytest.raises(UserError, match="vocab_size=8") as error:
        _trained(8)
    least = _suggested_size(error, r"Set vocab_size to (\d+) or more, or lower character_coverage\.")
    for vocab_size in (least, largest):
        assert len(_trained(vocab_size, hard=True).vocabulary()) == vocab_size
    for vocab_size in (least - 1, largest + 1):
        with pytest.raises(UserError):
            _trained(vocab_size, hard=True)


def _suggested_size(error: pytest.ExceptionInfo[UserError], pattern: str) -> int:
    """Returns the vocab_size that the last line of the error suggests. The line must match `pattern`."""
    found = re.fullmatch(pattern, str(error.value).splitlines()[-1])
    assert found, str(error.value)
    return int(found[1])


def test_pickled_and_saved_tokenizers_are_equal(tmp_path: Path) -> None:
    tokenizer = _trained()
    assert pickle.loads(pickle.dumps(tokenizer)).encode("red bird") == tokenizer.encode("red bird")
    (tmp_path / "m").write_bytes(tokenizer.model_bytes or b"")
    assert Tokenizer.load(tmp_path / "m").encode("red bird") == tokenizer.encode("red bird")


@pytest.mark.parametrize(
    ("separator", "tokens", "line"),
    [
        (None, "a b@@ c", "a b@@ c"),
        ("@@ ", "a b@@ c d@@", "a bc d"),
        ("subword_nmt", "a b@@ c", "a bc"),
        ("sentencepiece", "▁a ▁b c", "a bc"),
        ("wordpiece", "_a _b c", "a bc"),
        ("letter", "a | b c |", "a bc"),
        ("_EOW", "a_EOW b c_EOW", "a bc"),
        ("silence", "a <SIL> b", "a b"),
    ],
)
def test_subword_markers_are_removed(separator: str | None, tokens: str, line: str) -> None:
    tokenizer = Tokenizer.plain(separator)
    assert tokenizer.encode(f" {tokens}\u00a0 ") == tokens.split()
    assert tokenizer.decode(tokens.split()) == line


def test_subword_marker_is_detected_in_a_vocabulary() -> None:
    assert likely_marker(Vocabulary(["▁a", "b"])) == "sentencepiece"
    assert likely_marker(Vocabulary(["a", "b@@"])) == "@@ "
    assert likely_marker(Vocabulary(["a", "@@"])) is None


def test_invalid_sentencepiece_model_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path / "m")
    with pytest.raises(UserError, match="There is no SentencePiece model"):
        Tokenizer.load(tmp_path / "n")
    with pytest.raises(UserError, match="sentencepiece"):
        Tokenizer.plain("sentencepeice")
