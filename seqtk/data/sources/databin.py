"""Data-bin folders: binarised splits with their dictionaries, as fairseq or seqtk-preprocess wrote them.

A parallel folder names its files `<split>.<source>-<target>.<lang>`, a one-sided one `<split>`; a folder serves both
directions. seqtk adds `sentencepiece.model` (or one per language), `preprocess.json`, which records how the text was
tokenised, and the text of validation and test splits (`test.en-de.de.txt`).
"""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.data.indexed import IndexedDataset, JoinedItems
from seqtk.data.labelled_text import check_classes
from seqtk.data.report import TextCount
from seqtk.data.sources.base import Items, Source, SourceConfig, sources
from seqtk.data.tokenizer import Tokenizer, likely_marker
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError, near_path, nearest

RECORD = "preprocess.json"
CLASSES, LABELS = "classes.txt", ".labels.npy"
NO_LANGUAGE = "None"  # what fairseq-preprocess writes for the other side when it is given one language only


class DataBin:
    """One data-bin folder, opened for one direction.

    Args:
        directory: The folder.
        source_lang, target_lang: The direction. By default it follows from the file names; both are None in a
            one-sided folder (`dict.txt`, `train.idx`).
        remove_bpe: The subword marker of the text, or "none", for a folder without a record (fairseq's).

    Raises:
        UserError: If anything is missing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        remove_bpe: str | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.remove_bpe = remove_bpe
        if not self.directory.is_dir():
            raise UserError(
                f"There is no data-bin folder {directory}.",
                "seqtk-preprocess makes one.",
                *near_path(self.directory, suits=Path.is_dir),
            )
        self.source_lang, self.target_lang = self._direction(source_lang, target_lang)

    @cached_property
    def _datasets(self) -> dict[str, tuple[str, str, str] | None]:
        """The (source, target, language) of each data set by its file name without suffix; None if it is one-sided."""
        parsed = {path.name[: -len(".idx")]: _parse(path.name[: -len(".idx")]) for path in self._glob("*.idx")}
        return {name: found for name, found in parsed.items() if found is not None or "." not in name}

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self.directory.glob(pattern))

    def _direction(self, source: str | None, target: str | None) -> tuple[str | None, str | None]:
        pairs = sorted({found[:2] for found in self._datasets.values() if found is not None})
        both_ways = pairs + [(second, first) for first, second in pairs if (second, first) not in pairs]
        given = [pair for pair in both_ways if source in (None, pair[0]) and target in (None, pair[1])]
        if source is None and target is None:
            given = pairs
        if not pairs and source and target and not self._datasets:  # dictionaries alone, as for translating a text file
            return source, target
        if not pairs and (self._datasets or (self.directory / "dict.txt").is_file()):
            return None, None
        if len(given) == 1:
            first, second = given[0]
            return first, None if second == NO_LANGUAGE else second
        if not pairs:
            raise UserError(
                f"{self.directory} is not a data-bin folder: it has no .idx file.", "seqtk-preprocess makes one."
            )
        wanted = "-".join(filter(None, (source, target))) or "pair of languages"
        raise UserError(
            f"{self.directory} holds {', '.join('-'.join(pair) for pair in pairs)}, not just one {wanted}."
            if given
            else f"{self.directory} holds no {wanted}.",
            f"Set source_lang= and target_lang= to one of {', '.join('-'.join(pair) for pair in both_ways)}.",
        )

    @cached_property
    def _record(self) -> dict[str, dict[str, Any]]:
        """The record that seqtk-preprocess wrote; empty if fairseq made the folder."""
        path, parts = self.directory / RECORD, ("settings", "vocabulary", "splits")
        if not path.is_file():
            return {part: {} for part in parts}
        with self._record_errors():
            record = json.loads(path.read_text(encoding="utf-8"))
            return {part: dict(record.get(part, {})) for part in parts}

    @contextmanager
    def _record_errors(self) -> Iterator[None]:
        """Converts exceptions about an invalid record into a UserError."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.directory / RECORD} is not a record that seqtk-preprocess wrote: {error!r}.",
                "Make the data-bin again.",
            ) from None

    def classes(self) -> list[str]:
        """The names of the classes, line by line in `classes.txt`. Raises UserError if there are none."""
        path = self.directory / CLASSES
        if not path.is_file():
            raise UserError(
                f"{self.directory} has no labels: there is no {CLASSES}.", "task=classification needs them."
            )
        classes = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        check_classes(classes, of=str(path))
        return classes

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """The class of each item of a split.

        Raises UserError if there are none, or they do not belong to the items and the classes.
        """
        return np.concatenate([self._labels(part) for part in self._parts(split, self.source_lang)])

    def _labels(self, split: str) -> npt.NDArray[np.int32]:
        path = self.directory / f"{split}{LABELS}"
        if not path.is_file():
            raise UserError(f"{self.directory} has no labels for split '{split}': there is no {path.name}.")
        try:
            label_N: npt.NDArray[np.int32] = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            raise UserError(f"{path} is not an array of labels.", "Make the data-bin again.") from None
        items, classes = len(self._part(split, self.source_lang)), len(self.classes())
        problem = ""
        if label_N.ndim != 1 or label_N.dtype.kind not in "iu":
            problem = f"{path} is not an array of labels, but {label_N.dtype} with {label_N.ndim} axes."
        elif len(label_N) != items:
            problem = f"{path} has {len(label_N):,} labels, but split '{split}' has {items:,} examples."
        elif items and not 0 <= int(label_N.min()) <= int(label_N.max()) < classes:
            wrong = int(np.flatnonzero((label_N < 0) | (label_N >= classes))[0])
            problem = f"Label {wrong + 1:,} of {path} is {label_N[wrong]}, but {CLASSES} has {classes} classes, from 0."
        if problem:
            raise UserError(problem, "Make the data-bin again.")
        return label_N

    def vocabulary(self, lang: str | None = None) -> Vocabulary:
        """The dictionary of a language, or the only one of a one-sided folder.

        Raises UserError if its length differs from the record.
        """
        name = "dict.txt" if lang is None else f"dict.{lang}.txt"
        path = self.directory / name
        if not path.is_file():
            known = [found.name for found in self._glob("dict*.txt")]
            if not known:
                raise UserError(
                    f"{self.directory} is not a data-bin folder: there is no {name}.", "seqtk-preprocess makes one."
                )
            raise UserError(f"There is no {name} in {self.directory}.", nearest(name, known))
        vocabulary, noted = Vocabulary.load(path), self._record["vocabulary"]
        size = next(iter(noted.values()), None) if lang is None else noted.get(lang)
        if size not in (None, len(vocabulary)):
            raise UserError(
                f"{path} has {len(vocabulary):,} tokens, but had {size:,} when the data-bin was made.",
                "It was truncated or replaced: copy it again, or make the data-bin again.",
            )
        return vocabulary

    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        """The tokenizer of a language: its SentencePiece model, or the one in the record of preprocessing.

        Without a record, it is words with the subword marker `remove_bpe`.

        Raises:
            UserError: If the SentencePiece model is missing, or nothing says whether the dictionary has subwords.
        """
        names = ["sentencepiece.model"] if lang is None else [f"sentencepiece.{lang}.model", "sentencepiece.model"]
        for name in names:
            if (self.directory / name).is_file():
                return Tokenizer.load(self.directory / name)
        settings = self._record["settings"]
        tokens = settings.get("tokens")
        if tokens == "sentencepiece":
            raise UserError(
                f"There is no {names[-1 if settings.get('joint', True) else 0]} in {self.directory}, "
                "which was made with one.",
                "Copy it there too, or make the data-bin again.",
            )
        if tokens in ("bytes", "characters", "lowercase_words"):
            return Tokenizer.plain(tokens)
        marker = self.remove_bpe or settings.get("remove_bpe")
        if marker is None and "remove_bpe" not in settings:
            likely = likely_marker(self.vocabulary(lang))
            if likely == "bytes":  # the names of all 256, in their order
                return Tokenizer.plain("bytes")
            if likely is not None:
                raise UserError(
                    f"{self.directory} does not record its subword marker; its tokens look like '{likely}'.",
                    f"Set task.source.remove_bpe='{likely}', or task.source.remove_bpe=none for words.",
                )
        return Tokenizer.plain(None if marker == "none" else marker)

    def splits(self) -> list[str]:
        """The names of the splits that exist in every language of this direction."""
        names = {name.split(".")[0] for name in self._datasets}
        langs = {self.source_lang, self.target_lang} - {None} or {None}
        return sorted(name for name in names if all(self._find(name, lang) for lang in langs))

    def split(self, name: str, lang: str | None = None) -> IndexedDataset | JoinedItems:
        """The items of one split in one language (None for a one-sided folder); `train` with its further parts."""
        parts = [self._part(part, lang) for part in self._parts(name, lang)]
        return parts[0] if len(parts) == 1 else JoinedItems(parts)

    def _parts(self, name: str, lang: str | None) -> list[str]:
        """The names of the files of a split: as in fairseq, `train` continues in `train1`, `train2`, …."""
        further = (f"{name}{number}" for number in itertools.count(1))
        exist = itertools.takewhile(lambda part: self._find(part, lang) is not None, further)
        return [name, *(exist if name == "train" else ())]

    def _part(self, name: str, lang: str | None) -> IndexedDataset:
        found = self._find(name, lang)
        if found is None:
            raise UserError(
                f"There is no split '{name}'{f' in {lang}' if lang else ''} in {self.directory}.",
                nearest(name, self.splits()),
            )
        return IndexedDataset(self.directory / found)

    def lines(self, name: str, lang: str | None = None) -> list[str] | None:
        """The text of a split, a line for each item; None if only the items were kept."""
        path = self.directory / f"{self._find(name, lang)}.txt"
        if not path.is_file() or len(self._parts(name, lang)) > 1:
            return None
        with path.open(encoding="utf-8", newline="\n") as file:  # only \n ends a line: others may stand inside one
            return [line.removesuffix("\n") for line in file]

    def text_count(self, name: str) -> TextCount | None:
        """The size of the text that the tokens of a one-sided split keep; None if unknown or if lines were dropped.

        Words and lines are counted in the text itself. `original_text_count` has its bytes and characters too.
        """
        with self._record_errors():
            noted = self._record["splits"].get(name, {})
            if not noted.get("text") or any(noted["dropped"].values()):
                return None
            if len(self._parts(name, self.source_lang)) > 1 and noted["items"] != len(
                self.split(name, self.source_lang)
            ):
                return None  # parts have been added to the folder
            return TextCount(**(noted.get("kept") or noted["text"]))

    def original_text_count(self, name: str) -> TextCount | None:
        """The size of the text of a one-sided split, before tokenisation; None if it is unknown."""
        with self._record_errors():
            noted = self._record["splits"].get(name, {})
            return TextCount(**noted["text"]) if noted.get("text") else None

    def _find(self, split: str, lang: str | None) -> str | None:
        pair = [self.source_lang or NO_LANGUAGE, self.target_lang or NO_LANGUAGE]
        candidates = [split] if lang is None else [f"{split}.{'-'.join(way)}.{lang}" for way in (pair, pair[::-1])]
        return next((name for name in candidates if name in self._datasets), None)


def _parse(name: str) -> tuple[str, str, str] | None:
    """(source, target, language) of `train.en-de.de`; languages may have hyphens. None for any other name."""
    _, _, rest = name.partition(".")
    pair, _, lang = rest.rpartition(".")
    if pair.startswith(f"{lang}-"):
        return lang, pair[len(lang) + 1 :], lang
    if pair.endswith(f"-{lang}"):
        return pair[: -len(lang) - 1], lang, lang
    return None


@dataclass(frozen=True)
class DataBinSourceConfig(SourceConfig):
    """A data-bin folder."""

    remove_bpe: str | None = setting(
        None,
        help="Subword marker of the tokens, such as '@@ ' or sentencepiece, for a folder that fairseq-preprocess made; "
        "none: the tokens are words. null: as seqtk-preprocess recorded it.",
    )


@sources.register("databin", DataBinSourceConfig)
class DataBinSource(Source):
    """One data-bin directory, or several separated by commas: shards.

    Each epoch trains on one shard, in turn. Vocabularies, tokenizers and the other splits come from the first shard.
    """

    def __init__(
        self,
        config: Any = DataBinSourceConfig(),
        *,
        data: str,
        source_lang: str | None = None,
        target_lang: str | None = None,
        made_by: str = "",
    ) -> None:
        super().__init__(config, data=data, source_lang=source_lang, target_lang=target_lang, made_by=made_by)
        directories = (
            [data] if data and Path(data).is_dir() else [directory for directory in data.split(",") if directory]
        )
        if not directories:
            raise UserError("task.data is not set.", "Set it to a data-bin directory.")
        if ":" in data and len(directories) == 1 and all(Path(part).is_dir() for part in data.split(":")):  # fairseq's
            raise UserError(
                f"There is no data-bin folder {data}.", f"Separate shards by commas: {data.replace(':', ',')}"
            )
        self._shards = [self._open(directory) for directory in directories]
        self._data, self.epochs = self._shards[0], len(self._shards)
        self.source_lang, self.target_lang = self._data.source_lang, self._data.target_lang
        for shard in self._shards[1:]:  # checked here rather than in the epoch that reads them
            for lang in {self.source_lang, self.target_lang or self.source_lang}:
                if shard.vocabulary(lang) != self._data.vocabulary(lang):
                    raise UserError(
                        f"The shards {self._data.directory} and {shard.directory} have different dictionaries.",
                        "Preprocess all other shards with source_dict= (or sentencepiece=) of the first.",
                    )
                shard.split("train", lang)

    def _open(self, directory: str) -> DataBin:
        if self.made_by and not any(Path(directory).glob("dict*.txt")):
            raise UserError(
                f"There is no data-bin folder {directory}.",
                *near_path(Path(directory), suits=Path.is_dir),
                f"The recipe's own data is made by: {self.made_by}",
            )
        return DataBin(
            directory,
            source_lang=self.source_lang,
            target_lang=self.target_lang,
            remove_bpe=self.config.remove_bpe,
        )

    def vocabulary(self, lang: str | None = None) -> Vocabulary:
        return self._data.vocabulary(lang)

    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        return self._data.tokenizer(lang)

    def split(self, name: str, lang: str | None = None, *, epoch: int = 1) -> Items:
        return self._shards[(epoch - 1) % len(self._shards)].split(name, lang)

    def lines(self, name: str, lang: str | None = None) -> list[str] | None:
        return self._data.lines(name, lang)

    def classes(self) -> list[str]:
        return self._data.classes()

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        return self._data.labels(split)

    def text_count(self, name: str) -> TextCount | None:
        return self._data.text_count(name)
