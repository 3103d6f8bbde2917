"""From blocks of lines to arrays of ids, one pass over a whole block at a time and no Python loop over tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from seqtk.data.filters import LengthFilter
from seqtk.data.indexed import dtype_for
from seqtk.data.report import TextCount, count_text
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import EOS, UNK, Vocabulary
from seqtk.data.word_lookup import WordTable, joined, words_in_lines

Ids = npt.NDArray[Any]


class LineEncoder(Protocol):
    """Encodes the lines of one language."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What the ids are of."""

    def encode(self, lines: Sequence[bytes]) -> tuple[Ids, Ids]:
        """(ids of all lines one after the other, how many each line has): both without eos."""


class WordEncoder:
    """Encodes tokenised text: words between white space, each looked up in the vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        ids = {token.encode("utf-8"): vocabulary.id(token) for token in vocabulary.tokens}
        self._table = WordTable(list(ids), list(ids.values()), missing=UNK)

    def encode(self, lines: Sequence[bytes]) -> tuple[Ids, Ids]:
        text = joined(lines)
        ids, starts, _ = self._table.find(text)
        return ids, words_in_lines(text, starts)


class PieceEncoder:
    """Encodes raw text: SentencePiece's ids, a block at a time, turned into the vocabulary's by a table."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = tokenizer
        pieces = tokenizer.pieces()
        self._table = np.array([UNK if piece is None else vocabulary.id(piece) for piece in pieces], dtype=np.int64)
        self._hidden = np.array([piece is None for piece in pieces])
        # A dictionary that was counted from text may know a word which the model only sees as an unknown piece.
        self._knows_more = not set(vocabulary.tokens[UNK + 1 :]) <= {*pieces, *_fillers(vocabulary)}

    def encode(self, lines: Sequence[bytes]) -> tuple[Ids, Ids]:
        stripped = [line.rstrip(b"\r\n") for line in lines]
        encoded = self._tokenizer.encode_batch(stripped)
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        piece_ids = np.fromiter(chain.from_iterable(encoded), np.int64, int(sizes.sum()))
        ids = self._table[piece_ids]
        if self._knows_more and self._hidden[piece_ids].any():
            self._look_up_unknown_pieces(ids, self._hidden[piece_ids], sizes, stripped)
        return ids, sizes

    def _look_up_unknown_pieces(self, ids: Ids, hidden: Ids, sizes: Ids, lines: Sequence[bytes]) -> None:
        """In lines with unknown pieces, give those that the vocabulary has as words their ids."""
        ends = np.cumsum(sizes)
        for i in np.unique(np.searchsorted(ends, np.flatnonzero(hidden), side="right")):
            pieces = self._tokenizer.encode(lines[i].decode("utf-8"))
            ids[ends[i] - sizes[i] : ends[i]] = self.vocabulary.encode(pieces, eos=False)


def _fillers(vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.tokens[id_] for id_ in vocabulary.never_generated]


@dataclass(frozen=True)
class EncodedBlock:
    """What became of one block: the ids and sizes (eos included) of the kept lines of each language, and counts.

    `text` is how large the block was, before any line was dropped, where it is one-sided.
    """

    flats: tuple[Ids, ...]
    sizes: tuple[Ids, ...]
    lines: int
    dropped: dict[str, int]
    text: TextCount | None


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes aligned blocks of every language and filters them; it travels to worker processes once."""

    encoders: tuple[LineEncoder, ...]
    length_filter: LengthFilter
    eos: bool = True
    """Whether EOS closes each item."""

    def __call__(self, blocks: tuple[list[bytes], ...], filtered: bool) -> EncodedBlock:
        encoded = [encoder.encode(lines) for encoder, lines in zip(self.encoders, blocks, strict=True)]
        lengths = [sizes for _, sizes in encoded]
        dropped: dict[str, int] = {}
        if filtered:
            keep, dropped = self.length_filter(lengths)
            if not keep.all():
                encoded = [(ids[np.repeat(keep, sizes)], sizes[keep]) for ids, sizes in encoded]
        stored = [
            (_with_eos if self.eos else _stored)(ids, sizes, len(encoder.vocabulary))
            for encoder, (ids, sizes) in zip(self.encoders, encoded, strict=True)
        ]
        flats, sizes = zip(*stored, strict=True)
        text = count_text(blocks[0]) if len(blocks) == 1 else None
        return EncodedBlock(flats, sizes, len(blocks[0]), dropped, text)


def _stored(ids: Ids, sizes: Ids, vocabulary_size: int) -> tuple[Ids, Ids]:
    """The same items in the type they are stored in."""
    return ids.astype(dtype_for(vocabulary_size)), sizes.astype(np.int32)


def _with_eos(ids: Ids, sizes: Ids, vocabulary_size: int) -> tuple[Ids, Ids]:
    """The same items with EOS behind each, in the type they are stored in."""
    closed_sizes = sizes + 1
    closed = np.full(len(ids) + len(sizes), EOS, dtype=dtype_for(vocabulary_size))
    is_word = np.ones(len(closed), dtype=bool)
    is_word[np.cumsum(closed_sizes) - 1] = False
    closed[is_word] = ids
    return closed, closed_sizes.astype(np.int32)
