"""Trains SentencePiece models. The model depends on text and settings alone, not on the machine or the workers."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import SPECIALS
from seqtk.utils.errors import UserError

# SentencePiece adds partial sums in the order of its threads: a fixed number of them keeps the result reproducible.
_THREADS = 8
_OWN_SPECIALS = 3  # unknown, bos and eos, which a model counts among its pieces


MAX_LINE_BYTES = 4192
RESERVED = "\u2585".encode()
"""SentencePiece's trainer skips longer lines, and lines with this character."""


class TrainingSample:
    """The lines to train a model on. Counts the lines that SentencePiece skips."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.skipped = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.skipped += len(line) > MAX_LINE_BYTES or RESERVED in line
            yield line


def _reason(reason: str) -> str:
    """Returns SentencePiece's reason for a failure, with its sizes converted to values of vocab_size."""
    ours = len(SPECIALS) - _OWN_SPECIALS
    if too_small := re.search(r"required_chars\. \d+ vs (\d+)", reason):
        return f"Set vocab_size to {int(too_small[1]) + ours} or more, or character_coverage lower."
    if too_large := re.search(r"a value <= (\d+)", reason):
        return f"The text gives {int(too_large[1]) + ours} tokens at most."
    if "insert_id" in reason or "vocab_size" in reason:
        return "Raise vocab_size: it counts the special symbols and every character of the text."
    return reason.rpartition("] ")[2].strip() or reason


def train_tokenizer(
    lines: Iterable[bytes],
    *,
    vocab_size: int,
    model_type: str,
    character_coverage: float,
    byte_fallback: bool,
    hard_vocab_limit: bool,
) -> Tokenizer:
    """Trains a tokenizer on `lines`; its vocabulary has at most `vocab_size` entries, special symbols included.

    Raises UserError if the text is too small for any vocabulary, or for this one if `hard_vocab_limit` is true.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size - len(SPECIALS) + _OWN_SPECIALS,
            model_type=model_type,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            hard_vocab_limit=hard_vocab_limit,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"SentencePiece could not make a vocabulary of vocab_size={vocab_size}.", _reason(str(error))
        ) from None
    return Tokenizer.from_model(model.getvalue())
