"""A data source that reads labeled files into memory, without a data-bin."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.data.labelled_text import (
    ENDINGS,
    Columns,
    LabelledText,
    class_names,
    class_numbers,
    place_of,
    read_labelled,
)
from seqtk.data.sources.base import MissingSplitError, SourceConfig, sources
from seqtk.data.sources.text import TextSource
from seqtk.utils.suggestions import near_path


@dataclass(frozen=True)
class LabelledSourceConfig(Columns, SourceConfig):
    """Reads labeled files (TSV, CSV, JSON lines or arrays) into memory: train.tsv, valid.tsv, test.tsv in a folder."""

    tokens: Literal["words", "lowercase_words", "characters", "bytes"] = setting(
        "words", help="Tokens of a new model. Words are separated by white space. A trained model keeps its tokenizer."
    )


@sources.register("labelled", LabelledSourceConfig)
class LabelledSource(TextSource):
    """Reads the labeled files of a folder, or a single file that is used for every split."""

    def __init__(self, config: LabelledSourceConfig, **others: Any) -> None:
        self.sides = ("text",) if config.second is None else ("first", "second")
        super().__init__(config, **others)
        self.separator = None if config.tokens == "words" else config.tokens
        self._examples: dict[str, list[LabelledText]] = {}

    def read(self, split: str) -> Iterable[Sequence[str]]:
        return (example.texts for example in self._read(split))

    def classes(self) -> list[str]:
        return class_names(example.label for example in self._read("train"))

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        numbers = class_numbers(self._read(split), self.classes(), path=self._file(split))
        return np.fromiter((number for _, number in numbers), np.int32)

    def first_of(self, names: Sequence[str]) -> tuple[str, str]:
        first = next(example for example in self._read("train") if example.label in names)
        return first.label, place_of(first.line, self._file("train"))

    def _read(self, split: str) -> list[LabelledText]:
        path = self._file(split)
        if path not in self._examples:
            self._examples[path] = list(read_labelled(path, self.config))
        return self._examples[path]

    def _file(self, split: str) -> str:
        folder = Path(self.name)
        if self.name == "-" or not folder.is_dir():
            return self.name
        found = [folder / f"{split}{ending}" for ending in ENDINGS if (folder / f"{split}{ending}").is_file()]
        if not found:
            raise MissingSplitError(
                f"There is no split '{split}' in {folder}: there is no {split}.tsv, {split}.csv, {split}.jsonl, …",
                *near_path(folder / f"{split}.tsv"),
            )
        return str(found[0])
