"""The base of data sources: where the text of a task comes from, as token ids by split."""

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
    """The base of every data source's config."""


sources: Registry["Source"] = Registry("source", SourceConfig)


class Items(Protocol):
    """The items of one side of a split: `items[i]` is an int64 array of ids that ends in EOS."""

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """The number of ids in each item."""

    @property
    def total(self) -> int:
        """The number of ids in all items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> npt.NDArray[np.int64]: ...

    def stream(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """The ids from number `start` up to `end` of all items in a row."""


class Source(abc.ABC):
    """Text in one language, or in two line by line.

    Args:
        config: The source's settings (`task.source.key=value`).
        data: Where the text is (`task.data`, or `data=` of a command).
        source_lang: The language that is read, if the task or the model names one.
        target_lang: The language that is written, likewise.
        made_by: The command that makes the data, for the error if it is missing.

    Attributes:
        source_lang: The name of the first side; None if the text has one side without a name.
        target_lang: The name of the second side; None if the text has one side.
        name: What errors call the source.
        epochs: After how many epochs the training data repeat.
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
        """The vocabulary of one side."""

    @abc.abstractmethod
    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        """The tokenizer of one side."""

    @abc.abstractmethod
    def split(self, name: str, lang: str | None = None, *, epoch: int = 1) -> Items:
        """The items of one side of a split.

        A source may give other training data in each epoch, counted from 1, as long as it is a function of the epoch.
        Raises UserError if there is no such split.
        """

    def lines(self, name: str, lang: str | None = None) -> list[str] | None:
        """The original text of one side of a split, one line for each item; None if it is not kept."""
        return None

    def text_count(self, name: str) -> TextCount | None:
        """The size of the original text of a one-sided split; None if it is unknown."""
        return None

    def classes(self) -> list[str]:
        """The names of the classes in the order of their numbers. Raises UserError if there are no labels."""
        raise UserError(f"{self.name} has no labels.", "task=classification needs a class for each example.")

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """The class of each item of a split. Raises UserError if there are no labels."""
        raise UserError(f"{self.name} has no labels.", "task=classification needs a class for each example.")

    def first_of(self, names: Sequence[str]) -> tuple[str, str]:
        """Returns the class among `names` that occurs first, and where, for errors."""
        return names[0], self.name

    def use(self, lang: str | None, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
        """Makes the items of one side fit a model's vocabulary. Raises UserError if they cannot."""
        if self.vocabulary(lang) != vocabulary:
            of = f" of '{lang}'" if lang else ""
            raise UserError(
                f"The dictionary{of} in {self.name} differs from the model's.",
                "Preprocess it with the model's dictionary, or set input=FILE to the text if the command has input=.",
            )
