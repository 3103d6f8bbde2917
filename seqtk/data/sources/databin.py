"""Reads data-bin folders: encoded splits with their dictionaries, written by seqtk-preprocess or fairseq-preprocess.

The files are named `<split>.<source>-<target>.<lang>` for parallel text, which can be read in both directions, and
`<split>` for monolingual text. seqtk-preprocess adds `sentencepiece.model` (or one per language), `preprocess.json`,
which records how the text was tokenized, and the text of validation and test splits (`test.en-de.de.txt`).
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
from seqtk.data.labels import read_classes, read_labels
from seqtk.data.report import TextCount
from seqtk.data.sources.base import MissingSplitError, Source, SourceConfig, sources
from seqtk.data.tokenizer import Tokenizer, likely_marker
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import near_path, nearest
from seqtk.utils.text_io import read_lines

RECORD = "preprocess.json"
NO_LANGUAGE = "None"  # the language of monolingual text in file names of fairseq-preprocess


@dataclass(frozen=True)
class DataBinSourceConfig(SourceConfig):
    """Reads a data-bin folder."""

    remove_bpe: str | None = setting(
        None,
        help="Subword marker of the tokens, such as '@@ ' or sentencepiece, for a folder from fairseq-preprocess. "
        "none: the tokens are words. null: the marker that seqtk-preprocess recorded.",
    )


class DataBin(Source):
    """A data-bin folder, opened for one translation direction.

    Args:
        directory: The folder.
        source_lang, target_lang: The direction; by default, from the file names. Both are None for a monolingual folder
            (`dict.txt`, `train.idx`).
        remove_bpe: The subword marker of the tokens, or "none", for a folder that fairseq-preprocess wrote.

    Raises:
        UserError: If the folder or a language is missing, or the direction is ambiguous.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        remove_bpe: str | None = None,
    ) -> None:
        super().__init__(DataBinSourceConfig(remove_bpe), data=str(directory))
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise UserError(
                f"There is no data-bin folder {directory}.",
                "Run seqtk-preprocess to make one.",
                *near_path(self.directory, suits=Path.is_dir),
            )
        self.source_lang, self.target_lang = self._direction(source_lang, target_lang)

    @cached_property
    def _datasets(self) -> dict[str, tuple[str, str] | None]:
        """Dict from the name of each data set to (source, target), or to None if it is monolingual."""
        parsed = {path.stem: _parse(path.stem) for path in self._glob("*.idx")}
        return {name: langs for name, langs in parsed.items() if langs is not None or "." not in name}

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self.directory.glob(pattern))

    def _direction(self, source: str | None, target: str | None) -> tuple[str | None, str | None]:
        pairs = sorted({found for found in self._datasets.values() if found is not None})
        both_ways = pairs + [(second, first) for first, second in pairs if (second, first) not in pairs]
        given = [pair for pair in both_ways if source in (None, pair[0]) and target in (None, pair[1])]
        if source is None and target is None:
            given = pairs
        if not pairs and source and target and not self._datasets:  # dictionaries suffice for a text file
            return source, target
        if not pairs and (self._datasets or (self.directory / "dict.txt").is_file()):
            return None, None
        if len(given) == 1:
            first, second = given[0]
            return first, None if second == NO_LANGUAGE else second
        if not pairs:
            raise UserError(
                f"{self.directory} is not a data-bin folder: it has no .idx file.", "Run seqtk-preprocess to make one."
            )
        wanted = "-".join(filter(None, (source, target)))
        known = ", ".join("-".join(pair) for pair in both_ways)
        if not given:
            raise UserError(f"{self.directory} does not contain {wanted}.", f"It contains {known}.")
        raise UserError(
            f"{self.directory} has several language pairs: {', '.join('-'.join(pair) for pair in pairs)}.",
            f"Set task.source_lang and task.target_lang to one of {known}.",
        )

    @cached_property
    def _record(self) -> dict[str, dict[str, Any]]:
        """The content of `preprocess.json`, with empty entries for a folder that fairseq-preprocess wrote."""
        path, parts = self.directory / RECORD, ("settings", "vocabulary", "splits")
        if not path.is_file():
            return {part: {} for part in parts}
        with self._record_errors():
            record = json.loads(path.read_text(encoding="utf-8"))
            return {part: dict(record.get(part, {})) for part in parts}

    @contextmanager
    def _record_errors(self) -> Iterator[None]:
        """Converts exceptions that an invalid `preprocess.json` causes into a UserError."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.directory / RECORD} is not a valid record of seqtk-preprocess: {error!r}.",
                "Make the data-bin again.",
            ) from None

    def classes(self) -> list[str]:
        """Returns the names of the classes. Raises UserError if there are no classes."""
        return read_classes(self.directory)

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """Returns the class of each item of a split.

        Raises UserError if there are no labels, or they do not match the items and the classes.
        """
        parts, classes = self.parts(split, self.source_lang), len(self.classes())
        found = [
            read_labels(self.directory, part, items=len(self.part(part, self.source_lang)), classes=classes)
            for part in parts
        ]
        return np.concatenate(found)

    def vocabulary(self, lang: str | None = None) -> Vocabulary:
        """Returns the dictionary of a language. `lang` is None for a monolingual folder.

        Raises UserError if the dictionary is missing, or its length differs from the one in `preprocess.json`.
        """
        name = "dict.txt" if lang is None else f"dict.{lang}.txt"
        path = self.directory / name
        if not path.is_file():
            known = [found.name for found in self._glob("dict*.txt")]
            if not known:
                raise UserError(
                    f"{self.directory} is not a data-bin folder: it has no {name}.", "Run seqtk-preprocess to make one."
                )
            raise UserError(f"There is no {name} in {self.directory}.", nearest(name, known))
        vocabulary, sizes = Vocabulary.load(path), self._record["vocabulary"]
        size = next(iter(sizes.values()), None) if lang is None else sizes.get(lang)
        if size not in (None, len(vocabulary)):
            raise UserError(
                f"{path} has {len(vocabulary):,} tokens, but had {size:,} when the data-bin was made.",
                "The file was truncated or replaced. Copy it again, or make the data-bin again.",
            )
        return vocabulary

    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        """Returns the tokenizer of a language.

        Tokens are pieces of the folder's SentencePiece model, or of the kind that `preprocess.json` records. Without
        `preprocess.json`, tokens are separated by white space and have the subword marker `remove_bpe`.

        Raises:
            UserError: If the SentencePiece model is missing, or the subword marker is required but unknown.
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
                "but its text was tokenized with SentencePiece.",
                "Copy the model to this folder, or make the data-bin again.",
            )
        if tokens in ("bytes", "characters", "lowercase_words"):
            return Tokenizer.plain(tokens)
        marker = self.config.remove_bpe or settings.get("remove_bpe")
        if marker is None and "remove_bpe" not in settings:
            likely = likely_marker(self.vocabulary(lang))
            if likely == "bytes":  # unambiguous: the dictionary consists of the names of all 256 bytes in order
                return Tokenizer.plain("bytes")
            if likely is not None:
                raise UserError(
                    f"{self.directory} does not record its subword marker; its tokens look like '{likely}'.",
                    f"Set task.source.remove_bpe='{likely}', or task.source.remove_bpe=none for words.",
                )
        return Tokenizer.plain(None if marker == "none" else marker)

    def splits(self) -> list[str]:
        """Returns the names of the splits that exist in every language of this direction."""
        names = {name.split(".")[0] for name in self._datasets}
        langs = {self.source_lang, self.target_lang} - {None} or {None}
        return sorted(name for name in names if all(self._find(name, lang) for lang in langs))

    def split(self, name: str, lang: str | None = None, *, epoch: int = 1) -> IndexedDataset | JoinedItems:
        """Returns the items of a split in one language, from all its files. `lang` is None for a monolingual folder."""
        parts = [self.part(part, lang) for part in self.parts(name, lang)]
        return parts[0] if len(parts) == 1 else JoinedItems(parts)

    def parts(self, name: str, lang: str | None) -> list[str]:
        """Returns the names of the files of a split. As in fairseq, `train` has the files `train`, `train1`, …"""
        numbered = (f"{name}{number}" for number in itertools.count(1))
        existing = itertools.takewhile(lambda part: self._find(part, lang) is not None, numbered)
        return [name, *(existing if name == "train" else ())]

    def part(self, name: str, lang: str | None) -> IndexedDataset:
        """Returns the items of one file of a split in one language. Raises UserError if there is no such file."""
        found = self._find(name, lang)
        if found is None:
            raise MissingSplitError(
                f"There is no split '{name}'{f' of {lang}' if lang else ''} in {self.directory}.",
                nearest(name, self.splits()),
            )
        return IndexedDataset(self.directory / found)

    def lines(self, name: str, lang: str | None = None) -> list[str] | None:
        """Returns the text of a split, one line per item, or None if the folder has only token ids."""
        path = self.directory / f"{self._find(name, lang)}.txt"
        if not path.is_file() or len(self.parts(name, lang)) > 1:
            return None
        return list(read_lines(str(path)))

    def text_count(self, name: str) -> TextCount | None:
        """Returns the size of the text that can be decoded from a monolingual split, or None if it is unknown.

        The size is unknown if lines were dropped. Words and lines are counted in the original text.
        """
        with self._record_errors():
            counts = self._record["splits"].get(name, {})
            if not counts.get("text") or any(counts["dropped"].values()):
                return None
            if len(self.parts(name, self.source_lang)) > 1 and counts["items"] != len(
                self.split(name, self.source_lang)
            ):
                return None  # files have been added to the split
            return TextCount(**(counts.get("kept") or counts["text"]))

    def _find(self, split: str, lang: str | None) -> str | None:
        pair = [self.source_lang or NO_LANGUAGE, self.target_lang or NO_LANGUAGE]
        candidates = [split] if lang is None else [f"{split}.{'-'.join(way)}.{lang}" for way in (pair, pair[::-1])]
        return next((name for name in candidates if name in self._datasets), None)


def _parse(name: str) -> tuple[str, str] | None:
    """Returns (source, target) of a name such as `train.en-de.de`, or None if it has a different form.

    Names of languages may contain hyphens.
    """
    _, _, rest = name.partition(".")
    pair, _, lang = rest.rpartition(".")
    if pair.startswith(f"{lang}-"):
        return lang, pair[len(lang) + 1 :]
    if pair.endswith(f"-{lang}"):
        return pair[: -len(lang) - 1], lang
    return None


@sources.register("databin", DataBinSourceConfig)
class DataBinSource(DataBin):
    """A data-bin folder, or the shards of a corpus: several folders separated by commas.

    Each epoch reads the next shard. Vocabularies, tokenizers and the other splits come from the first shard.
    """

    def __init__(
        self,
        config: DataBinSourceConfig = DataBinSourceConfig(),
        *,
        data: str,
        made_by: str = "",
        **languages: str | None,
    ) -> None:
        directories = (
            [data] if data and Path(data).is_dir() else [directory for directory in data.split(",") if directory]
        )
        if not directories:
            raise UserError("task.data is not set.", "Set it to a data-bin folder.")
        if (
            ":" in data and len(directories) == 1 and all(Path(part).is_dir() for part in data.split(":"))
        ):  # as in fairseq
            raise UserError(
                f"There is no data-bin folder {data}.", f"Separate shards by commas: {data.replace(':', ',')}"
            )
        for directory in directories:
            if made_by and not any(Path(directory).glob("dict*.txt")):
                raise UserError(
                    f"There is no data-bin folder {directory}.",
                    *near_path(Path(directory), suits=Path.is_dir),
                    f"To make the data of this recipe: {made_by}",
                )
        first, *others = directories
        super().__init__(first, remove_bpe=config.remove_bpe, **languages)
        self.config, self.name = config, data
        self._shards = [self, *(DataBin(other, remove_bpe=config.remove_bpe, **languages) for other in others)]
        self.epochs = len(self._shards)
        for shard in self._shards[1:]:  # checked here, so that errors do not occur in a later epoch
            for lang in {self.source_lang, self.target_lang or self.source_lang}:
                if shard.vocabulary(lang) != self.vocabulary(lang):
                    raise UserError(
                        f"The shards {self.directory} and {shard.directory} have different dictionaries.",
                        "Preprocess all shards with the dictionary of the first shard: seqtk-preprocess source_dict=….",
                    )
                shard.split("train", lang)

    def split(self, name: str, lang: str | None = None, *, epoch: int = 1) -> IndexedDataset | JoinedItems:
        return DataBin.split(self._shards[(epoch - 1) % len(self._shards)], name, lang)

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        if self.epochs > 1:
            raise UserError(f"{self.name} has several shards.", "For labeled data, list each shard in task.mix.")
        return super().labels(split)
