"""Training a SentencePiece model, the same one for the same text and settings on any machine and number of workers."""

import io
import re
from collections.abc import Iterable

import sentencepiece

from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import SPECIALS
from seqtk.utils.errors import UserError

# SentencePiece adds partial sums in the order of its threads: a fixed number of them keeps the result reproducible.
_THREADS = 8
_OWN_SPECIALS = 3  # unknown, bos and eos, which a model counts among its pieces


def _in_our_words(reason: str) -> str:
    """Why there is no model, with our keys and our count of the special symbols."""
    ours = len(SPECIALS) - _OWN_SPECIALS
    if too_small := re.search(r"required_chars\. \d+ vs (\d+)", reason):
        return f"Set vocab_size to {int(too_small[1]) + ours} or more, or character_coverage lower."
    if too_large := re.search(r"a value <= (\d+)", reason):
        return f"The text gives {int(too_large[1]) + ours} tokens at most."
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
    """The tokenizer learnt from `lines`, whose vocabulary has at most `vocab_size` entries, special symbols included.

    Text that gives fewer pieces makes a smaller vocabulary, or a UserError where `hard_vocab_limit` is true.
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
            f"SentencePiece could not make a vocabulary of vocab_size={vocab_size}.", _in_our_words(str(error))
        ) from None
    return Tokenizer.from_model(model.getvalue())
