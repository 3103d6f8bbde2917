"""The base class of data sources that keep their text in memory. A subclass only reads the lines."""

import abc
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.data.report import TextCount, count_text
from seqtk.data.sources.base import Items, Source, SourceConfig
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError, how_many


class MemoryItems:
    """The items of a split in one language, in memory (see `Items`)."""

    def __init__(self, items: Iterable[npt.NDArray[np.int64]]) -> None:
        self._items = list(items)
        self.sizes = np.array([len(item) for item in self._items], dtype=np.int32)

    @property
    def total(self) -> int:
        return int(self.sizes.sum(dtype=np.int64))

    @cached_property
    def _stream(self) -> npt.NDArray[np.int64]:
        return np.concatenate([*self._items, np.empty(0, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        return self._items[index]

    def stream(self, start: int, end: int) -> npt.NDArray[np.int64]:
        return self._stream[start:end]


class TextSource(Source):
    """Base class of sources that keep their text in memory. A subclass implements `read`.

    `use` sets the vocabulary. By default, a vocabulary contains the words of the training split, sorted by frequency.
    """

    sides: tuple[str, ...] = ("source", "target")
    """Default names of the languages: one name for monolingual text, two for pairs."""
    separator: str | None = None
    """The separator of `Tokenizer.plain`, which splits lines into tokens. None: white space."""

    def __init__(self, config: Any, *, data: str, source_lang: str | None = None, **others: Any) -> None:
        super().__init__(config, data=data, source_lang=source_lang, **others)
        self.source_lang = self.source_lang or self.sides[0]
        self.target_lang = (self.target_lang or self.sides[1]) if len(self.sides) > 1 else None
        self._rows: dict[str, list[tuple[str, ...]]] = {}
        self._given: dict[str | None, tuple[Vocabulary, Tokenizer]] = {}

    @abc.abstractmethod
    def read(self, split: str) -> Iterable[Sequence[str]]:
        """Returns the examples of a split, each with one line of text for each language.

        Raises UserError if there is no such split.
        """

    def vocabulary(self, lang: str | None = None) -> Vocabulary:
        if lang not in self._given:
            tokenizer = Tokenizer.plain(self.separator)
            words = itertools.chain.from_iterable(map(tokenizer.encode, self._lines("train", lang)))
            self._given[lang] = Vocabulary.from_counts(Counter(words)), tokenizer
        return self._given[lang][0]

    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        self.vocabulary(lang)
        return self._given[lang][1]

    def use(self, lang: str | None, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
        self._given[lang] = vocabulary, tokenizer

    def split(self, name: str, lang: str | None = None, *, epoch: int = 1) -> Items:
        vocabulary, tokenizer = self.vocabulary(lang), self.tokenizer(lang)
        return MemoryItems(vocabulary.encode(tokenizer.encode(line)) for line in self._lines(name, lang))

    def lines(self, name: str, lang: str | None = None) -> list[str]:
        return self._lines(name, lang)

    def text_count(self, name: str) -> TextCount:
        return count_text("".join(f"{line}\n" for line in self._lines(name, self.source_lang)).encode())

    def _lines(self, split: str, lang: str | None) -> list[str]:
        if split not in self._rows:
            self._rows[split] = [self._checked(row, split, number) for number, row in enumerate(self.read(split), 1)]
        side = 1 if lang is not None and lang == self.target_lang else 0
        return [row[side] for row in self._rows[split]]

    def _checked(self, row: Sequence[str], split: str, number: int) -> tuple[str, ...]:
        if len(row) != len(self.sides):
            raise UserError(
                f"Example {number} of split '{split}' in {self.name} has {how_many(len(row), 'text')}, "
                f"but must have {len(self.sides)}."
            )
        return tuple(row)


class GivenText(TextSource):
    """A source for text that the user gives to a command. Every split is this text.

    Args:
        sides: The lines of text in each language.
        source_lang: The name of the first language.
        target_lang: The name of the second language, if there are two.
        name: The name of the text in errors.
    """

    def __init__(
        self,
        *sides: Sequence[str],
        source_lang: str | None = None,
        target_lang: str | None = None,
        name: str = "input=",
    ) -> None:
        self.sides = ("source", "target")[: len(sides)]
        super().__init__(SourceConfig(), data=name, source_lang=source_lang, target_lang=target_lang)
        self._sides = sides

    def read(self, split: str) -> Iterable[Sequence[str]]:
        return zip(*self._sides, strict=True)
