"""The base class of data sources. A source provides the token ids of each split for a task."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from seqtk.config.registry import Registry
from seqtk.data.report import TextCount
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class SourceConfig:
    """Base class of the configs of data sources."""


class OtherDictionaryError(UserError):
    """Raised if the dictionary of the data differs from the dictionary of the model."""


class MissingSplitError(UserError):
    """Raised if a source has no split with the given name."""


sources: Registry["Source"] = Registry("source", SourceConfig, replaced={"place_of": "first_of"})


class Items(Protocol):
    """Protocol for the items of a split in one language: `items[i]` is an int64 array of ids that ends in EOS.

    If there is a method `take(indices)`, which returns several items, it is used to read batches.
    """

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """The number of ids in each item."""

    @property
    def total(self) -> int:
        """The number of ids in all items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> npt.NDArray[np.int64]: ...

    def stream(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Returns the ids `start` to `end` - 1 of the concatenated items."""


class Source(abc.ABC):
    """Base class of data sources: text in one language, or parallel text in two.

    Args:
        config: The settings of the source (`task.source.key=value`).
        data: The location of the data (`task.data`, or `data=` of a command).
        source_lang: The source language of the task or model, or None.
        target_lang: The target language of the task or model, or None.
        made_by: The command that makes the data. The error for missing data shows it.

    Attributes:
        source_lang: The name of the source language. None for monolingual text whose language has no name.
        target_lang: The name of the target language. None for monolingual text.
        name: The name of the source in errors.
        epochs: The number of epochs after which the training data repeat.
    """

    epochs = 1

    def __init__(
        self,
        config: Any,
        *,
        data: str,
        source_lang: str | None = None,
        target_lang: str | None = None,
        made_by: str = "",
    ) -> None:
        self.config, self.name = config, data
        self.source_lang, self.target_lang = source_lang, target_lang
        self.made_by = made_by

    @abc.abstractmethod
    def vocabulary(self, lang: str | None = None) -> Vocabulary:
        """Returns the vocabulary of the language `lang`."""

    @abc.abstractmethod
    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        """Returns the tokenizer of the language `lang`."""

    @abc.abstractmethod
    def split(self, name: str, lang: str | None = None, *, epoch: int = 1) -> Items:
        """Returns the items of a split in the language `lang`. Raises UserError if there is no such split.

        The training data may be different in each epoch (counted from 1), but must depend only on the epoch.
        """

    def lines(self, name: str, lang: str | None = None) -> list[str] | None:
        """Returns the original text of a split in `lang`, one line per item, or None if the source has only ids."""
        return None

    def text_count(self, name: str) -> TextCount | None:
        """Returns the size of the original text of a monolingual split, or None if it is unknown."""
        return None

    def classes(self) -> list[str]:
        """Returns the names of the classes in the order of their indices. Raises UserError if there are no labels."""
        raise UserError(f"{self.name} has no labels.", "task=classification requires a class for each example.")

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """Returns the index of the class of each item of a split. Raises UserError if there are no labels."""
        raise UserError(f"{self.name} has no labels.", "task=classification requires a class for each example.")

    def first_of(self, names: Sequence[str]) -> tuple[str, str]:
        """Returns (the first class in the data that is in `names`, its file and line), for an error message."""
        return names[0], self.name

    def use(self, lang: str | None, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
        """Sets the vocabulary and tokenizer of the language `lang` to the vocabulary and tokenizer of a model.

        Raises:
            OtherDictionaryError: If the data are encoded with a different dictionary.
        """
        if self.vocabulary(lang) != vocabulary:
            of = f" of '{lang}'" if lang else ""
            raise OtherDictionaryError(
                f"The dictionary{of} in {self.name} differs from the dictionary of the model.",
                "Preprocess the text with the dictionary of the model: seqtk-preprocess source_dict=….",
            )
