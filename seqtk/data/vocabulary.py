"""Vocabularies, which map tokens to ids, and dictionary files in fairseq's format (`docs/formats.md`).

Ids 0 to 3 are the special symbols, which are not in the file. The token in line i of the file (from 0) has id 4 + i.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seqtk.utils.errors import UserError
from seqtk.utils.files import write_text

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")

_FILLER = re.compile(r"madeupword\d{4,}")
_OVERWRITE = " #fairseq:overwrite"


class Vocabulary:
    """Maps tokens to ids and ids to tokens, and stores the count of each token in the training text.

    Args:
        tokens: The tokens, without the four special symbols. A token that occurs more than once has its last id.
        counts: The count of each token. None: all counts are 1.
    """

    def __init__(self, tokens: Sequence[str], counts: Sequence[int] | None = None) -> None:
        if counts is not None and len(counts) != len(tokens):
            raise ValueError(f"there are {len(tokens)} tokens, but {len(counts)} counts")
        self.tokens: list[str] = [*SPECIALS, *tokens]
        self.counts: list[int] = [0] * len(SPECIALS) + (list(counts) if counts is not None else [1] * len(tokens))
        self._ids = {token: id_ for id_, token in enumerate(self.tokens)}

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], *, threshold: int = -1, nwords: int = -1, padding_factor: int = 8
    ) -> "Vocabulary":
        """Creates a vocabulary of the most frequent words, sorted by count, then by code points.

        Args:
            counts: The count of each word.
            threshold: The minimum count. Rarer words are omitted.
            nwords: The maximum size, including special symbols. -1: no limit.
            padding_factor: Filler words pad the size to a multiple of this number.
        """
        words = [word for word in counts if word not in SPECIALS and counts[word] >= threshold]
        words.sort(key=lambda word: (-counts[word], word))
        if nwords != -1:
            words = words[: max(0, nwords - len(SPECIALS))]
        return cls(words, [counts[word] for word in words]).padded(padding_factor)

    def padded(self, factor: int) -> "Vocabulary":
        """Pads this vocabulary to a multiple of `factor` with the filler words `madeupword0000`, `madeupword0001`, …"""
        fillers: list[str] = []
        number = 0
        while factor > 1 and (len(self) + len(fillers)) % factor:
            filler = f"madeupword{number:04d}"
            if filler not in self:
                fillers.append(filler)
            number += 1
        first = len(SPECIALS)
        return Vocabulary(self.tokens[first:] + fillers, self.counts[first:] + [0] * len(fillers))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads a dictionary file. Raises UserError if it is missing or malformed."""
        try:
            text = Path(path).read_bytes().decode("utf-8")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise UserError(f"There is no dictionary {path}.") from None
        except UnicodeDecodeError as error:
            raise UserError(f"The dictionary {path} is not UTF-8 text: {error}.") from None
        return cls.from_text(text, name=str(path))

    @classmethod
    def from_text(cls, text: str, *, name: str = "dictionary") -> "Vocabulary":
        """Parses the content of a dictionary file. `name` is the name of the file in errors."""
        tokens: list[str] = []
        counts: list[int] = []
        seen = set(SPECIALS)
        lines = text.split("\n")
        for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
            entry = line.rstrip("\r")
            overwrites = entry.endswith(_OVERWRITE)
            token, space, count = entry.removesuffix(_OVERWRITE).rpartition(" ")
            if not (space and token and re.fullmatch(r"-?\d+", count)):
                raise UserError(f"Line {number} of {name} must be '<token> <count>', but is:", repr(line[:80]))
            if token in seen and not overwrites:
                raise UserError(
                    f"Line {number} of {name} repeats the token '{token}'.",
                    f"Remove the line, or end it with '{_OVERWRITE.strip()}' to replace the earlier entry.",
                )
            seen.add(token)
            tokens.append(token)
            counts.append(int(count))
        return cls(tokens, counts)

    def to_text(self) -> str:
        """Returns the content of the dictionary file, identical to fairseq's."""
        seen = set(SPECIALS)
        lines = []
        for token, count in zip(self.tokens[len(SPECIALS) :], self.counts[len(SPECIALS) :], strict=True):
            lines.append(f"{token} {count}{_OVERWRITE if token in seen else ''}\n")
            seen.add(token)
        return "".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the dictionary file atomically."""
        write_text(path, self.to_text())

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __eq__(self, other: object) -> bool:
        """Vocabularies are equal if they map the same tokens to the same ids. Counts are not compared."""
        return isinstance(other, Vocabulary) and self.tokens == other.tokens

    def id(self, token: str) -> int:
        """Returns the id of `token`, or UNK if it is not in the vocabulary."""
        return self._ids.get(token, UNK)

    def encode(self, tokens: Iterable[str], eos: bool = True) -> npt.NDArray[np.int64]:
        """Returns the ids of `tokens`, followed by EOS unless `eos` is false.

        Tokens that are unknown or equal a special symbol, such as the word `<pad>` in a text, become UNK.
        """
        ids = [max(self._ids.get(token, UNK), UNK) for token in tokens]
        return np.array([*ids, EOS] if eos else ids, dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Returns the tokens of `ids` (any iterable of integers), without BOS, PAD and EOS. UNK becomes `<unk>`."""
        return [self.tokens[id_] for id_ in map(int, ids) if id_ > EOS]

    @property
    def never_generated(self) -> list[int]:
        """The ids that are never generated: bos, pad, and the filler words that pad the vocabulary."""
        return [BOS, PAD, *(id_ for id_, token in enumerate(self.tokens) if _FILLER.fullmatch(token))]
