"""Translation: pairs of sentences in, BLEU and chrF out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqtk.data.batch import Batch, TranslationBatch, check_ids, collate_pairs
from seqtk.data.databin import DataBin
from seqtk.data.indexed import IndexedDataset
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.search import SearchConfig, search
from seqtk.metrics import Output
from seqtk.models import Model, ModelConfig, build_model
from seqtk.tasks.base import Assets, Task, TaskConfig, tasks
from seqtk.tasks.text import open_data, tokenizer_assets, tokenizer_from
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class TranslationConfig(TaskConfig):
    """A data-bin directory of sentence pairs, as seqtk-preprocess or fairseq-preprocess wrote it."""

    source_lang: str | None = None  # found in the file names if the directory holds one pair
    target_lang: str | None = None  # the same


class PairDataset:
    """The pairs of one split as `(index, source ids, target ids)`, memory-mapped, with their text if it was kept."""

    def __init__(
        self,
        source: IndexedDataset,
        target: IndexedDataset,
        *,
        source_lines: list[str] | None = None,
        target_lines: list[str] | None = None,
    ) -> None:
        if len(source) != len(target):
            raise UserError(
                f"The two sides of a split differ: {len(source)} source and {len(target)} target sentences.",
                "Preprocess the corpus again.",
            )
        for lines in (source_lines, target_lines):
            if lines is not None and len(lines) != len(source):
                raise UserError(
                    f"The text kept of a split has {len(lines)} lines, its items are {len(source)}.",
                    "Preprocess the corpus again.",
                )
        self.source, self.target = source, target
        self.source_lines, self.target_lines = source_lines, target_lines
        self.sizes_ND = np.stack([source.sizes, target.sizes], axis=1)

    def __len__(self) -> int:
        return len(self.source)

    def is_blank(self, index: int) -> bool:
        """Whether the source is a line of text without a token, which no model was taught to translate."""
        return self.source_lines is not None and int(self.source.sizes[index]) == 1

    def __getitem__(self, index: int) -> tuple[int, Any, Any]:
        return index, self.source[index], self.target[index]


@tasks.register("translation", TranslationConfig)
class TranslationTask(Task):
    """Two vocabularies, two tokenizers, and pairs of sentences."""

    metrics = ("loss", "nll", "ppl", "bleu", "chrf")

    def __init__(self, config: TranslationConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config)
        self._data: DataBin | None = None
        if assets is None:
            self._data = data = open_data(config)
            if data.target_lang is None:
                raise UserError(
                    f"{data.directory} holds one-sided text, not pairs of sentences.",
                    "Train a language model on it with task=language_modeling, or preprocess with target_lang=.",
                )
            self.source_lang, self.target_lang = data.source_lang or "source", data.target_lang or "target"
            self.source_vocabulary = data.vocabulary(data.source_lang)
            self.target_vocabulary = data.vocabulary(data.target_lang)
            self.source_tokenizer = data.tokenizer(data.source_lang)
            self.target_tokenizer = data.tokenizer(data.target_lang)
        else:
            self.source_lang, self.target_lang = assets["source.lang"], assets["target.lang"]
            self.source_vocabulary = Vocabulary.from_text(assets["source.dict"])
            self.target_vocabulary = Vocabulary.from_text(assets["target.dict"])
            self.source_tokenizer = tokenizer_from(assets, "source")
            self.target_tokenizer = tokenizer_from(assets, "target")

    def assets(self) -> Assets:
        return {
            "source.lang": self.source_lang,
            "target.lang": self.target_lang,
            "source.dict": self.source_vocabulary.to_text(),
            "target.dict": self.target_vocabulary.to_text(),
            **tokenizer_assets(self.source_tokenizer, "source"),
            **tokenizer_assets(self.target_tokenizer, "target"),
        }

    def open(self, data: DataBin | None = None) -> DataBin:
        """The corpus: `data` from now on, or the one that the config names."""
        self._data = data or self._data or open_data(self.config)
        return self._data

    def dataset(self, split: str) -> PairDataset:
        data = self.open()
        return PairDataset(
            data.split(split, data.source_lang),
            data.split(split, data.target_lang),
            source_lines=data.lines(split, data.source_lang),
            target_lines=data.lines(split, data.target_lang),
        )

    def collate(self, examples: Sequence[Any]) -> Batch:
        batch = collate_pairs(examples)
        check_ids(batch.source_BS, self.source_vocabulary, name=f"the dictionary of '{self.source_lang}'")
        check_ids(batch.target_BT, self.target_vocabulary, name=f"the dictionary of '{self.target_lang}'")
        return batch

    def model(self, config: ModelConfig) -> Model:
        return build_model(
            config, source_vocabulary=len(self.source_vocabulary), target_vocabulary=len(self.target_vocabulary)
        )

    def source_text(self, ids: Sequence[int]) -> str:
        """The line whose source ids these are."""
        return self.source_tokenizer.decode(self.source_vocabulary.decode(ids))

    def target_text(self, ids: Sequence[int]) -> str:
        """The line whose target ids these are."""
        return self.target_tokenizer.decode(self.target_vocabulary.decode(ids))

    def outputs(self, model: Model, batch: Batch, dataset: PairDataset, search_config: SearchConfig) -> list[Output]:
        assert isinstance(batch, TranslationBatch)
        found = search([model], batch, search_config, vocabulary=self.target_vocabulary)
        return [
            Output(
                index=index,
                source=dataset.source_lines[index]
                if dataset.source_lines
                else self.source_text(dataset.source[index].tolist()),
                output="" if dataset.is_blank(index) else self.target_text(hypotheses[0].tokens),
                references=(
                    dataset.target_lines[index]
                    if dataset.target_lines
                    else self.target_text(dataset.target[index].tolist()),
                ),
            )
            for index, hypotheses in zip(batch.ids_B.tolist(), found, strict=True)
        ]
