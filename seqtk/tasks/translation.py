"""Translation: pairs of sentences, with BLEU and chrF as metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from seqtk.config.fields import setting
from seqtk.data.batch import Batch, TranslationBatch, check_ids, collate_pairs, take
from seqtk.data.sources import Items, Source
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.search import SearchConfig, search
from seqtk.metrics import Output
from seqtk.models import Model, ModelConfig, build_model
from seqtk.tasks.base import Assets, TaskConfig, tasks
from seqtk.tasks.text import TextTask, tokenizer_assets, tokenizer_from
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class TranslationConfig(TaskConfig):
    """Settings of translation: the data and its two languages."""

    renamed: ClassVar[dict[str, str]] = dict.fromkeys(("pairs", "vocab_size", "corpus_seed"), "")
    """Keys of the task `demo_translation` of seqtk 0.1."""

    source_lang: str | None = setting(
        None, help="Source language. null: from the file names, if the folder has only one pair of languages."
    )
    target_lang: str | None = setting(None, help="Target language. null: from the file names, like source_lang.")


class PairDataset:
    """The sentence pairs of a split. Example i is `(i, source ids, target ids)`.

    `source_lines` and `target_lines` are the original texts, or None if these are not stored.
    """

    def __init__(
        self,
        source: Items,
        target: Items,
        *,
        source_lines: list[str] | None = None,
        target_lines: list[str] | None = None,
    ) -> None:
        if len(source) != len(target):
            raise UserError(
                f"The two sides of a split differ in length: {len(source)} source and {len(target)} target sentences.",
                "Preprocess the corpus again.",
            )
        for lines in (source_lines, target_lines):
            if lines is not None and len(lines) != len(source):
                raise UserError(
                    f"The stored text of a split has {len(lines)} lines, but the split has {len(source)} sentences.",
                    "Preprocess the corpus again.",
                )
        self.source, self.target = source, target
        self.source_lines, self.target_lines = source_lines, target_lines
        self.sizes_ND = np.stack([source.sizes, target.sizes], axis=1)
        self.truncated = 0

    def __len__(self) -> int:
        return len(self.source)

    def is_blank(self, index: int) -> bool:
        """Returns True if the source of an example is an empty line. Its translation is empty."""
        return self.source_lines is not None and int(self.source.sizes[index]) == 1

    def __getitem__(self, index: int) -> tuple[int, Any, Any]:
        return index, self.source[index], self.target[index]

    def take(self, indices: Sequence[int]) -> list[tuple[int, Any, Any]]:
        """Returns the examples at `indices`, which is faster than reading them one by one."""
        return list(zip(indices, take(self.source, indices), take(self.target, indices), strict=True))


@tasks.register("translation", TranslationConfig)
class TranslationTask(TextTask):
    """Translation of sentences. Each side has a vocabulary and a tokenizer."""

    metrics = ("loss", "nll", "ppl", "bleu", "chrf")
    pairs = True

    def __init__(self, config: TranslationConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config)
        self.from_data = assets is None
        if assets is None:
            source = self.open()
            self.source_lang, self.target_lang = source.source_lang or "source", source.target_lang or "target"
            self.source_vocabulary = source.vocabulary(source.source_lang)
            self.target_vocabulary = source.vocabulary(source.target_lang)
            self.source_tokenizer = source.tokenizer(source.source_lang)
            self.target_tokenizer = source.tokenizer(source.target_lang)
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

    def connect(self, source: Source) -> None:
        if source.target_lang is None:
            raise UserError(
                f"{source.name} contains monolingual text, not pairs of sentences.",
                "Preprocess pairs: seqtk-preprocess source_lang=… target_lang=….",
                "seqtk-train task=language_modeling trains a language model on monolingual text.",
            )
        if hasattr(self, "target_tokenizer"):
            source.use(source.source_lang, self.source_vocabulary, self.source_tokenizer)
            source.use(source.target_lang, self.target_vocabulary, self.target_tokenizer)

    def dataset(self, split: str) -> PairDataset:
        source = self.open()
        return PairDataset(
            source.split(split, source.source_lang),
            source.split(split, source.target_lang),
            source_lines=source.lines(split, source.source_lang),
            target_lines=source.lines(split, source.target_lang),
        )

    def training_set(self, epoch: int) -> PairDataset:
        source = self.open()
        sides = (source.source_lang, source.target_lang)
        return PairDataset(*(source.split("train", lang, epoch=epoch) for lang in sides))

    def collate(self, examples: Sequence[Any]) -> Batch:
        batch = collate_pairs(examples)
        check_ids(batch.source_BS, self.source_vocabulary, name=f"the dictionary of '{self.source_lang}'")
        check_ids(batch.target_BT, self.target_vocabulary, name=f"the dictionary of '{self.target_lang}'")
        return batch

    def model(self, config: ModelConfig) -> Model:
        # Models that older versions trained with such tables must still load from their files.
        if (
            self.from_data
            and getattr(config, "share_embeddings", None) == "all"
            and self.source_vocabulary.tokens != self.target_vocabulary.tokens
        ):
            raise UserError(
                "model.share_embeddings=all requires the same dictionary on both sides.",
                f"The dictionaries of '{self.source_lang}' and '{self.target_lang}' in {self.config.data} differ.",
                "Use seqtk-preprocess joint=true, or set model.share_embeddings=decoder.",
            )
        return build_model(
            config,
            TranslationBatch,
            source_vocabulary=len(self.source_vocabulary),
            target_vocabulary=len(self.target_vocabulary),
        )

    def source_text(self, ids: Sequence[int]) -> str:
        """Converts source ids to a line of text."""
        return self.source_tokenizer.decode(self.source_vocabulary.decode(ids))

    def target_text(self, ids: Sequence[int]) -> str:
        """Converts target ids to a line of text."""
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
