"""Tokenizers. They split text into SentencePiece pieces, bytes, characters or words, and join tokens into text."""

import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece

from seqtk.data import char_tokenizer as symbols
from seqtk.data.vocabulary import SPECIALS, Vocabulary
from seqtk.data.word_lookup import lowercase_words
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

SPACE_PIECE = "\u2581"
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


def _without_spaces(tokens: Sequence[str], boundary: str) -> str:
    return "".join(tokens).replace(boundary, " ").strip()


JOINERS: dict[str, Callable[[Sequence[str]], str]] = {
    "@@ ": lambda tokens: (" ".join(tokens) + " ").replace("@@ ", "").rstrip(),
    "sentencepiece": lambda tokens: _without_spaces(tokens, SPACE_PIECE),
    "wordpiece": lambda tokens: _without_spaces(tokens, "_"),
    "letter": lambda tokens: _without_spaces(tokens, "|"),
    "_EOW": lambda tokens: _without_spaces(tokens, "_EOW"),
    "silence": lambda tokens: re.sub(" +", " ", " ".join(tokens).replace("<SIL>", "")).strip(),
}
"""Maps each subword marker to a function that joins tokens and removes the marker (fairseq's `--remove-bpe`)."""
JOINERS["subword_nmt"] = JOINERS["@@ "]
JOINERS |= {"bytes": symbols.names_to_bytes, "characters": symbols.names_to_characters, "lowercase_words": " ".join}

SPLITTERS: dict[str | None, Callable[[str], list[str]]] = {
    "bytes": symbols.bytes_to_names,
    "characters": symbols.characters_to_names,
    "lowercase_words": lambda line: lowercase_words(line).split(),
}
"""Maps kinds of tokens to functions that split text into tokens, if white space does not separate the tokens."""


class Tokenizer:
    """Splits lines into tokens, and joins tokens into lines. Created by `load`, `from_model` or `plain`. Picklable."""

    def __init__(self, model_bytes: bytes | None, separator: str | None) -> None:
        if separator is not None and separator not in JOINERS:
            raise UserError(f"There is no subword marker called '{separator}'.", nearest(separator, JOINERS))
        self.model_bytes = model_bytes
        self.separator = separator
        self._processor: Any = None
        if model_bytes is not None:
            self._processor = sentencepiece.SentencePieceProcessor()
            self._processor.LoadFromSerializedProto(model_bytes)

    @classmethod
    def from_model(cls, model_bytes: bytes, *, name: str = "model") -> "Tokenizer":
        """Creates a tokenizer from the bytes of a SentencePiece model. `name` is the name of the model in errors."""
        try:
            return cls(model_bytes, None)
        except RuntimeError:
            raise UserError(f"{name} is not a SentencePiece model.") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Creates a tokenizer from a SentencePiece model file. Raises UserError if it is missing or invalid."""
        try:
            model_bytes = Path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise UserError(f"There is no SentencePiece model {path}.") from None
        return cls.from_model(model_bytes, name=str(path))

    @classmethod
    def plain(cls, separator: str | None = None) -> "Tokenizer":
        """Creates a tokenizer without a model. By default, it splits at white space and joins tokens with spaces.

        Args:
            separator: The subword marker that `decode` removes, like fairseq's `--remove-bpe`: `"@@ "`,
                `"sentencepiece"`, `"wordpiece"`, `"letter"`, `"_EOW"` or `"silence"`. `"bytes"` and `"characters"`
                split text into bytes or characters, with the names in `seqtk.data.char_tokenizer`. `"lowercase_words"`
                splits text with `seqtk.data.word_lookup.lowercase_words`. None: no marker.
        """
        return cls(None, separator)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes | None, str | None]]:
        return Tokenizer, (self.model_bytes, self.separator)

    def encode(self, line: str) -> list[str]:
        """Splits one line into tokens."""
        if self._processor is None:
            return SPLITTERS.get(self.separator, str.split)(line)
        pieces: list[str] = self._processor.Encode(line, out_type=str)
        return pieces

    def encode_batch(self, lines: Sequence[bytes]) -> list[list[int]]:
        """Encodes UTF-8 lines in one thread. Returns ids of the SentencePiece model, not of the vocabulary."""
        ids: list[list[int]] = self._processor.Encode(list(lines), out_type=int, num_threads=1)
        return ids

    def normalize(self, line: bytes) -> bytes:
        """Returns a UTF-8 line after SentencePiece's normalization: the text that can be decoded from its pieces."""
        text: str = self._processor.Normalize(line.decode("utf-8"))
        return text[self.prefix_length :].replace(SPACE_PIECE, " ").encode()

    @cached_property
    def prefix_length(self) -> int:
        """The number of characters (0 or 1) that SentencePiece adds before each line."""
        return int(self._processor.Normalize("a").startswith(SPACE_PIECE))

    def decode(self, tokens: Sequence[str]) -> str:
        """Joins tokens into a line."""
        if self._processor is not None:
            line: str = self._processor.DecodePieces(list(tokens))
            return line
        return " ".join(tokens) if self.separator is None else JOINERS[self.separator](tokens)

    def pieces(self) -> list[str | None]:
        """Returns the pieces of the model in the order of their ids. Unknown, bos, eos and pad pieces are None."""
        processor = self._processor
        hidden = [processor.IsUnknown(id_) or processor.IsControl(id_) for id_ in range(len(processor))]
        return [None if hide else processor.IdToPiece(id_) for id_, hide in enumerate(hidden)]

    def vocabulary(self) -> Vocabulary:
        """Returns a vocabulary of the model's pieces in their order, without the unknown, bos, eos and pad pieces."""
        return Vocabulary([piece for piece in self.pieces() if piece is not None and piece not in SPECIALS])


def likely_marker(vocabulary: Vocabulary) -> str | None:
    """Returns the probable subword marker of the tokens, or "bytes" or "characters", or None for words."""
    kind = symbols.kind_of(vocabulary)
    words = vocabulary.tokens[len(SPECIALS) :]
    if kind is None and any(word.startswith(SPACE_PIECE) for word in words):
        return "sentencepiece"
    return kind or ("@@ " if any(len(word) > 2 and word.endswith("@@") for word in words) else None)
