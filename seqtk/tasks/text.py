"""The base class of tasks on text, and functions that store tokenizers in a model file and load them."""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

from seqtk.data.batch import Dataset
from seqtk.data.mixing import CorpusConfig, MixedExamples
from seqtk.data.sources import Source, sources
from seqtk.data.tokenizer import Tokenizer
from seqtk.tasks.base import Assets, Task
from seqtk.utils.errors import UserError


class TextTask(Task):
    """Base class of tasks on text. All their data come from a source, which the setting `task.source` selects."""

    pairs: ClassVar[bool] = False
    """True if each example is a pair of texts, so that the source must have two sides."""
    _source: Source | None = None

    @property
    def epochs(self) -> int:
        return 1 if self.config.mix else self.open().epochs

    def connect(self, source: Source) -> None:
        """Checks a newly opened source. If the task already has vocabularies, sets them in the source.

        Raises:
            UserError: If the source does not match the task or its vocabularies.
        """

    def open(self, data: str | Source | None = None) -> Source:
        """Returns the source of the data, and opens it if needed.

        Args:
            data: A location or source that replaces the current source. If it is None, the current source is kept.

        Raises:
            UserError: If the data cannot be read, or do not match the task or its vocabularies.
        """
        if data is not None or self._source is None:
            source = data if isinstance(data, Source) else self._open(data or self.config.data)
            self.connect(source)
            if self.pairs and source.target_lang is None:
                raise UserError(
                    f"{source.name} has one text for each example, but this task requires pairs of texts.",
                    "Set task.data or task.source to parallel text.",
                )
            self._source = source
        return self._source

    @contextmanager
    def reading(self, data: str | Source) -> Iterator[None]:
        """Context manager in which the task reads `data` instead of its current source. Raises the errors of `open`."""
        before = self._source
        try:
            self.open(data)
            yield
        finally:
            self._source = before

    def epoch_examples(self, epoch: int, *, seed: int) -> Dataset:
        config = self.config
        if not config.mix:
            return super().epoch_examples(epoch, seed=seed)
        return MixedExamples(
            self._corpora,
            [corpus.data for corpus in config.mix],
            weights=[corpus.weight for corpus in config.mix],
            temperature=config.temperature,
            seed=seed,
            epoch=epoch,
        )

    @cached_property
    def _corpora(self) -> list[Dataset]:
        """The training sets of `task.mix`. Raises UserError if one cannot be read with the task's vocabularies."""
        return [self._corpus(corpus) for corpus in self.config.mix]

    def _corpus(self, corpus: CorpusConfig) -> Dataset:
        try:
            if not corpus.data:
                raise UserError(
                    "data of a corpus is not set.", "Set data of each corpus: [{data: A, weight: 2}, {data: B}]."
                )
            source = self._open(corpus.data, source_lang=corpus.source_lang, target_lang=corpus.target_lang)
            if source.epochs > 1:
                raise UserError(f"{corpus.data} has several shards.", "List each shard as a corpus.")
            with self.reading(source):
                examples = self.training_set(1)
            if not len(examples):
                raise UserError(f"{corpus.data} has no training examples.", "Remove it.")
        except UserError as error:
            problem, *others = str(error).splitlines()
            raise UserError(f"task.mix: {problem}", *others) from error
        return examples

    def _open(self, data: str, **others: str | None) -> Source:
        languages: dict[str, Any] = {
            key: others.get(key) or getattr(self, key, None) or getattr(self.config, key, None)
            for key in ("source_lang", "target_lang")
        }
        made_by = self.config.made_by if data == self.config.data else ""
        return sources.build(self.config.source, data=data, made_by=made_by, **languages)


def tokenizer_assets(tokenizer: Tokenizer, side: str) -> Assets:
    """Converts a tokenizer to assets of a model file, whose names begin with `side`. See `tokenizer_from`."""
    if tokenizer.model_bytes is not None:
        return {f"{side}.sentencepiece": base64.b64encode(tokenizer.model_bytes).decode("ascii")}
    return {} if tokenizer.separator is None else {f"{side}.separator": tokenizer.separator}


def tokenizer_from(assets: Mapping[str, str], side: str) -> Tokenizer:
    """Builds a tokenizer from the assets of a model file, the inverse of `tokenizer_assets`."""
    model = assets.get(f"{side}.sentencepiece")
    if model is not None:
        return Tokenizer.from_model(base64.b64decode(model))
    return Tokenizer.plain(assets.get(f"{side}.separator"))
