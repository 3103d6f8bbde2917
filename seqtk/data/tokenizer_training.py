"""Trains SentencePiece models. A model depends only on the text and the settings, not on the machine or workers."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import SPECIALS
from seqtk.utils.errors import UserError

# SentencePiece computes one partial sum per thread, so reproducible results require a fixed number of threads.
_THREADS = 8
_MODEL_SPECIALS = 3  # unknown, bos and eos, which SentencePiece includes in the vocabulary size


MAX_LINE_BYTES = 4192
RESERVED = "\u2585".encode()
"""SentencePiece's trainer skips lines longer than MAX_LINE_BYTES, and lines that contain the character RESERVED."""


class TrainingSample:
    """Iterates over the lines to train a model on, and counts the lines that SentencePiece skips."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.skipped = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.skipped += len(line) > MAX_LINE_BYTES or RESERVED in line
            yield line


def _advice(reason: str) -> str:
    """Converts SentencePiece's message about a failure into advice, and its sizes into values of vocab_size."""
    difference = len(SPECIALS) - _MODEL_SPECIALS
    if too_small := re.search(r"required_chars\. \d+ vs (\d+)", reason):
        return f"Set vocab_size to {int(too_small[1]) + difference} or more, or lower character_coverage."
    if too_large := re.search(r"a value <= (\d+)", reason):
        return f"The text is too small: set vocab_size to {int(too_large[1]) + difference} or less."
    if "insert_id" in reason or "vocab_size" in reason:
        return "Raise vocab_size: the vocabulary includes the special symbols and all characters of the text."
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
    """Trains a tokenizer on `lines`. Its vocabulary has at most `vocab_size` entries, including special symbols.

    Raises UserError if the text is too small for any vocabulary or, with `hard_vocab_limit`, for `vocab_size` entries.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size - len(SPECIALS) + _MODEL_SPECIALS,
            model_type=model_type,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            hard_vocab_limit=hard_vocab_limit,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"SentencePiece could not train a model with vocab_size={vocab_size}.", _advice(str(error))
        ) from None
    return Tokenizer.from_model(model.getvalue())
