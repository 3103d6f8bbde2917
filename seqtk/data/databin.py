"""A data-bin directory: binarised splits with their dictionaries, as fairseq or seqtk-preprocess wrote it.

A parallel directory names its files `<split>.<source>-<target>.<lang>`, a one-sided one just `<split>`; a directory
serves both directions. `sentencepiece.model` (or one per language), `preprocess.json` and the
text of validation and test splits (`test.en-de.de.txt`) are seqtk's own additions.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from seqtk.data.indexed import IndexedDataset
from seqtk.data.report import TextCount
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError, near_path, nearest

RECORD = "preprocess.json"
NO_LANGUAGE = "None"  # what fairseq-preprocess writes for the other side when it is given one language only


class DataBin:
    """Opens one data-bin directory for one direction. Whatever is missing is a UserError that names it.

    Languages that are not given are inferred from the file names. `source_lang` and `target_lang` are None in a
    one-sided directory (`dict.txt`, `train.idx`).
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, source_lang: str | None = None, target_lang: str | None = None
    ) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise UserError(
                f"There is no data-bin directory {directory}.",
                "seqtk-preprocess makes one.",
                *near_path(self.directory, suits=Path.is_dir),
            )
        self.source_lang, self.target_lang = self._direction(source_lang, target_lang)

    @cached_property
    def _datasets(self) -> dict[str, tuple[str, str, str] | None]:
        """Each data set's file name without suffix → (source, target, its own language), None where one-sided."""
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
            raise UserError(f"{self.directory} is not a data-bin directory: it holds no .idx file.")
        wanted = f"{source or '?'}-{target or '?'}"
        raise UserError(
            f"{self.directory} holds {', '.join('-'.join(pair) for pair in pairs)}, not just one {wanted}."
            if given
            else f"{self.directory} holds no {wanted}.",
            f"Set source_lang= and target_lang= to one of {', '.join('-'.join(pair) for pair in both_ways)}.",
        )

    @cached_property
    def _record(self) -> dict[str, dict[str, Any]]:
        """What seqtk-preprocess noted of the directory; nothing where fairseq made it."""
        path, parts = self.directory / RECORD, ("settings", "vocabulary", "splits")
        if not path.is_file():
            return {part: {} for part in parts}
        with self._damage_told():
            record = json.loads(path.read_text(encoding="utf-8"))
            return {part: dict(record.get(part, {})) for part in parts}

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        """Raises UserError where the record turns out to be something else."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.directory / RECORD} is not the record of a preprocessing: {error!r}.",
                "Make the data-bin anew, or remove that file: then there are no figures per word, byte and character.",
            ) from None

    def vocabulary(self, lang: str | None = None) -> Vocabulary:
        """The dictionary of a language, or the only one of a one-sided directory.

        Raises UserError where it has not the length that the data-bin was made with.
        """
        name = "dict.txt" if lang is None else f"dict.{lang}.txt"
        path = self.directory / name
        if not path.is_file():
            known = [found.name for found in self._glob("dict*.txt")]
            raise UserError(f"There is no {name} in {self.directory}.", nearest(name, known))
        vocabulary, noted = Vocabulary.load(path), self._record["vocabulary"]
        size = next(iter(noted.values()), None) if lang is None else noted.get(lang)
        if size not in (None, len(vocabulary)):
            raise UserError(
                f"{path} has {len(vocabulary):,} tokens, but had {size:,} when the data-bin was made.",
                "It was cut short or replaced: copy it again, or make the data-bin anew.",
            )
        return vocabulary

    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        """The SentencePiece model of a language; without one, white space, with the dictionary's subword marker.

        Raises UserError where the data-bin was made with a model that is not there.
        """
        names = ["sentencepiece.model"] if lang is None else [f"sentencepiece.{lang}.model", "sentencepiece.model"]
        for name in names:
            if (self.directory / name).is_file():
                return Tokenizer.load(self.directory / name)
        settings = self._record["settings"]
        if settings.get("tokens") == "sentencepiece":
            raise UserError(
                f"There is no {names[-1 if settings.get('joint', True) else 0]} in {self.directory}, "
                "which was made with one.",
                "Copy it there too, or make the data-bin anew: a model could read no text without it.",
            )
        return Tokenizer.guess(self.vocabulary(lang))

    def splits(self) -> list[str]:
        """The names of the splits that are there in every language of this direction."""
        names = {name.split(".")[0] for name in self._datasets}
        langs = {self.source_lang, self.target_lang} - {None} or {None}
        return sorted(name for name in names if all(self._find(name, lang) for lang in langs))

    def split(self, name: str, lang: str | None = None) -> IndexedDataset:
        """The items of one split in one language (None for a one-sided directory)."""
        found = self._find(name, lang)
        if found is None:
            raise UserError(
                f"There is no split '{name}'{f' in {lang}' if lang else ''} in {self.directory}.",
                nearest(name, self.splits()),
            )
        return IndexedDataset(self.directory / found)

    def lines(self, name: str, lang: str | None = None) -> list[str] | None:
        """The text that a split was made from, a line for each item; None where only the items were kept."""
        path = self.directory / f"{self._find(name, lang)}.txt"
        if not path.is_file():
            return None
        with path.open(encoding="utf-8", newline="\n") as file:  # only \n ends a line: others may stand inside one
            return [line.removesuffix("\n") for line in file]

    def text_count(self, name: str) -> TextCount | None:
        """How large the text of a one-sided split is; None where nobody counted it, or not all of it became items."""
        with self._damage_told():
            noted = self._record["splits"].get(name, {})
            if not noted.get("text") or any(noted["dropped"].values()):
                return None
            return TextCount(**noted["text"])

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
