"""Encodes blocks of lines as arrays of ids, without a Python loop over tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.data.char_tokenizer import code_of, symbols
from seqtk.data.corpus import count_lines, split_lines
from seqtk.data.filters import LengthFilter
from seqtk.data.indexed_writer import dtype_for
from seqtk.data.report import TextCount, count_text, text_size
from seqtk.data.tokenizer import BYTE_PIECE, SPACE_PIECE, Tokenizer
from seqtk.data.vocabulary import EOS, UNK, Vocabulary
from seqtk.data.word_lookup import WordTable, lowercase_block, narrow_spaces, words_in_lines

Ids = npt.NDArray[Any]


@dataclass(frozen=True)
class EncodedLines:
    """The tokens of the lines of one language, without EOS.

    Attributes:
        ids: The ids of all lines, concatenated.
        sizes: The number of ids of each line.
        special: The number of words that equal a special symbol, such as `<pad>`. These words are encoded as UNK.
        kept: The numbers of bytes and characters that can be decoded from the tokens. None if the whole text can be
            decoded.
    """

    ids: Ids
    sizes: Ids
    special: int = 0
    kept: tuple[int, int] | None = None


class WordEncoder:
    """Encodes the words of text by looking them up in the vocabulary. Splits at white space or by `lowercase_words`."""

    def __init__(self, vocabulary: Vocabulary, *, lowercase: bool = False) -> None:
        self.vocabulary, self._lowercase = vocabulary, lowercase
        ids = {token.encode("utf-8"): id_ for id_, token in enumerate(vocabulary.tokens)}
        self._table = WordTable(list(ids), list(ids.values()), missing=UNK)

    def encode(self, block: bytes, *, measure: bool = False) -> EncodedLines:
        """Encodes the lines of a block. With `measure`, also computes `EncodedLines.kept`."""
        text = narrow_spaces(lowercase_block(block) if self._lowercase else block)
        ids, starts, ends = self._table.find(text)
        is_special = ids < UNK
        special = int(np.count_nonzero(is_special))
        if special:
            ids[is_special] = UNK
        sizes = words_in_lines(text, starts)
        kept = None
        if measure:  # decoded text has one space between words, and line ends
            in_words, between = int((ends - starts).sum()), len(ids) - int(np.count_nonzero(sizes)) + len(sizes)
            kept = in_words + between, text_size(text)[1] - (len(text) - in_words) + between
        return EncodedLines(ids, sizes, special, kept)


class PieceEncoder:
    """Encodes raw text with SentencePiece, and maps the ids of pieces to ids of the vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = tokenizer
        pieces = tokenizer.pieces()
        self._table = np.array([UNK if piece is None else vocabulary.id(piece) for piece in pieces], dtype=np.int64)
        self._no_piece = np.array([piece is None for piece in pieces])
        self._bytes, self._characters = (np.array(lengths) for lengths in zip(*map(_size, pieces), strict=True))
        # A dictionary that was built from counts may contain words that are not pieces of the model.
        self._has_extra_words = not set(vocabulary.tokens[UNK + 1 :]) <= {*pieces, *_fillers(vocabulary)}

    def encode(self, block: bytes, *, measure: bool = False) -> EncodedLines:
        stripped = [line.rstrip(b"\r\n") for line in split_lines(block)]
        encoded = self._tokenizer.encode_batch(stripped)
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        piece_ids = np.fromiter(chain.from_iterable(encoded), np.int64, int(sizes.sum()))
        ids = self._table[piece_ids]
        is_unknown = self._no_piece[piece_ids]
        if self._has_extra_words and is_unknown.any():
            self._look_up_unknown_pieces(ids, is_unknown, sizes, stripped)
        kept = self._measure(piece_ids, is_unknown, sizes, stripped) if measure else None
        return EncodedLines(ids, sizes, kept=kept)

    def _measure(self, piece_ids: Ids, is_unknown: Ids, sizes: Ids, lines: Sequence[bytes]) -> tuple[int, int]:
        """Returns (bytes, characters) of the text that the pieces decode to, including line feeds."""
        rest = 0, 0
        if is_unknown.any():  # lines with unknown characters
            lines_with_unknown = np.unique(np.searchsorted(np.cumsum(sizes), np.flatnonzero(is_unknown), side="right"))
            all_known = np.ones(len(sizes), dtype=bool)
            all_known[lines_with_unknown] = False
            piece_ids, sizes = piece_ids[np.repeat(all_known, sizes)], sizes[all_known]
            rest = text_size(b"".join(self._tokenizer.normalize(lines[i]) for i in lines_with_unknown))
        counts = np.bincount(piece_ids, minlength=len(self._table))
        ends = len(lines) - self._tokenizer.prefix_length * int(np.count_nonzero(sizes))
        return int(counts @ self._bytes) + rest[0] + ends, int(counts @ self._characters) + rest[1] + ends

    def _look_up_unknown_pieces(self, ids: Ids, is_unknown: Ids, sizes: Ids, lines: Sequence[bytes]) -> None:
        """Encodes the lines that contain unknown pieces again: looks up the text of each piece in the vocabulary."""
        ends = np.cumsum(sizes)
        for i in np.unique(np.searchsorted(ends, np.flatnonzero(is_unknown), side="right")):
            pieces = self._tokenizer.encode(lines[i].decode("utf-8"))
            ids[ends[i] - sizes[i] : ends[i]] = self.vocabulary.encode(pieces, eos=False)


class SymbolEncoder:
    """Encodes text as bytes or characters. With `newlines`, line feeds are tokens; otherwise they are removed."""

    def __init__(self, vocabulary: Vocabulary, *, characters: bool, newlines: bool) -> None:
        self.vocabulary = vocabulary
        self._characters, self._newlines = characters, newlines
        self._ids = np.full(0x110000 if characters else 256, UNK, dtype=np.uint32)
        for id_, name in enumerate(vocabulary.tokens):
            code = code_of(name, characters=characters)
            if code is not None:
                self._ids[code] = id_

    def encode(self, block: bytes, *, measure: bool = False) -> EncodedLines:
        codes, sizes = symbols(block, characters=self._characters, newlines=self._newlines)
        return EncodedLines(self._ids[codes], sizes)


LineEncoder = WordEncoder | PieceEncoder | SymbolEncoder


def _fillers(vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.tokens[id_] for id_ in vocabulary.never_generated]


def _size(piece: str | None) -> tuple[int, int]:
    """Returns (bytes, characters) of the text of a SentencePiece piece, or (0, 0) for special symbols."""
    if piece is None:
        return 0, 0
    if BYTE_PIECE.fullmatch(piece):
        byte = int(piece[3:5], 16)
        return 1, int(byte & 0xC0 != 0x80)
    return len(piece.replace(SPACE_PIECE, " ").encode()), len(piece)


@dataclass(frozen=True)
class EncodedBlock:
    """The result of encoding and filtering a block of lines.

    Attributes:
        flats: For each language, the ids of the kept lines, concatenated.
        sizes: For each language, the number of ids of each kept line.
        lines: The number of lines that were read.
        dropped: For each rule of `LengthFilter`, the number of lines that it dropped.
        special: For each language, the number of words that equal a special symbol.
        text: The size of monolingual text before lines were dropped. None for pairs.
        kept: The size of the part of `text` that can be decoded from the tokens.
    """

    flats: tuple[Ids, ...]
    sizes: tuple[Ids, ...]
    lines: int
    dropped: dict[str, int]
    special: tuple[int, ...]
    text: TextCount | None
    kept: TextCount | None


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes and filters aligned blocks of all languages. With `eos`, each item ends in EOS.

    It is sent to each worker process once.
    """

    encoders: tuple[LineEncoder, ...]
    length_filter: LengthFilter
    eos: bool = True

    def __call__(self, blocks: tuple[bytes, ...], filtered: bool) -> EncodedBlock:
        monolingual = len(blocks) == 1
        encoded = [
            encoder.encode(block, measure=monolingual) for encoder, block in zip(self.encoders, blocks, strict=True)
        ]
        items = [(each.ids, each.sizes) for each in encoded]
        dropped: dict[str, int] = {}
        if filtered:
            keep, dropped = self.length_filter([sizes for _, sizes in items])
            if not keep.all():
                items = [(ids[np.repeat(keep, sizes)], sizes[keep]) for ids, sizes in items]
        stored = [
            (append_eos if self.eos else _to_stored_type)(ids, sizes, len(encoder.vocabulary))
            for encoder, (ids, sizes) in zip(self.encoders, items, strict=True)
        ]
        flats, sizes = zip(*stored, strict=True)
        text = count_text(blocks[0]) if monolingual else None
        special = tuple(each.special for each in encoded)
        kept = text
        if text is not None and encoded[0].kept is not None:
            missing_feed = not blocks[0].endswith(b"\n")  # the last line of a file may have no line feed
            kept = replace(text, bytes=encoded[0].kept[0] - missing_feed, characters=encoded[0].kept[1] - missing_feed)
        return EncodedBlock(flats, sizes, count_lines(blocks[0]), dropped, special, text, kept)


def _to_stored_type(ids: Ids, sizes: Ids, vocabulary_size: int) -> tuple[Ids, Ids]:
    """Converts ids and sizes to the data types in which they are stored."""
    return ids.astype(dtype_for(vocabulary_size)), sizes.astype(np.int32)


def append_eos(ids: Ids, sizes: Ids, vocabulary_size: int) -> tuple[Ids, Ids]:
    """Appends EOS to each item, and converts ids and sizes to the data types in which they are stored."""
    new_sizes = sizes + 1
    new_ids = np.full(len(ids) + len(sizes), EOS, dtype=dtype_for(vocabulary_size))
    is_word = np.ones(len(new_ids), dtype=bool)
    is_word[np.cumsum(new_sizes) - 1] = False
    new_ids[is_word] = ids
    return new_ids, new_sizes.astype(np.int32)
