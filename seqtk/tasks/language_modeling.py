"""Language modeling: the model predicts each token of a text from the tokens before it.

`SampleTask` is the base class of language modeling and of similar tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqtk.config.fields import setting
from seqtk.data.batch import Batch, LanguageBatch, check_ids
from seqtk.data.blocks import BreakMode, TokenBlocks, collate_blocks
from seqtk.data.report import TextCount
from seqtk.data.sources import Source
from seqtk.data.vocabulary import Vocabulary
from seqtk.models import Model, ModelConfig, build_model
from seqtk.tasks.base import Assets, TaskConfig, tasks
from seqtk.tasks.text import TextTask, tokenizer_assets, tokenizer_from
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class LanguageModelingConfig(TaskConfig):
    """Settings of tasks on monolingual text: the data, and how it is split into samples."""

    data: str = setting(
        "", help="Data-bin folder. Several folders, separated by commas, are shards; each epoch reads the next one."
    )
    tokens_per_sample: int = setting(512, at_least=1, help="Maximum number of targets in a sample.")
    break_mode: BreakMode = setting(
        "none",
        help="How the text is split into samples. none: after tokens_per_sample tokens. complete: after whole lines. "
        "complete_doc: after whole lines of one document. eos: after each line.",
    )


class SampleTask(TextTask):
    """Base class of tasks that split a stream of tokens into samples. They have one vocabulary and one tokenizer."""

    def __init__(self, config: LanguageModelingConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config)
        if assets is None:
            source = self.open()
            self.vocabulary = source.vocabulary(source.source_lang)
            self.tokenizer = source.tokenizer(source.source_lang)
        else:
            self.vocabulary = Vocabulary.from_text(assets["text.dict"])
            self.tokenizer = tokenizer_from(assets, "text")

    def assets(self) -> Assets:
        return {"text.dict": self.vocabulary.to_text(), **tokenizer_assets(self.tokenizer, "text")}

    def connect(self, source: Source) -> None:
        if source.target_lang is not None:
            raise UserError(
                f"{source.name} contains pairs of {source.source_lang} and {source.target_lang}.",
                "A language model needs monolingual text: use seqtk-preprocess without target_lang=.",
            )
        if hasattr(self, "vocabulary"):
            source.use(source.source_lang, self.vocabulary, self.tokenizer)

    def shortening(self, *, training: bool) -> str | None:
        return "task.tokens_per_sample to at most the limit" if training else None

    def text(self, ids: Sequence[int]) -> str:
        """Converts token ids to text."""
        return self.tokenizer.decode(self.vocabulary.decode(ids))

    def blocks(self, split: str, *, epoch: int = 1) -> TokenBlocks:
        """Returns the samples of a split."""
        source = self.open()
        return TokenBlocks(
            source.split(split, source.source_lang, epoch=epoch),
            break_mode=self.config.break_mode,
            tokens_per_sample=self.config.tokens_per_sample,
        )


@tasks.register("language_modeling", LanguageModelingConfig)
class LanguageModelingTask(SampleTask):
    """Language modeling: the model predicts each token from the tokens before it."""

    metrics = ("loss", "nll", "ppl", "bits_per_token", "bits_per_byte", "bits_per_character", "word_ppl")
    sides = ("target",)

    def __init__(self, config: LanguageModelingConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config, assets=assets)
        # Decoding reads these attributes.
        self.source_vocabulary = self.target_vocabulary = self.vocabulary
        self.source_tokenizer = self.target_tokenizer = self.tokenizer

    @property
    def continuous(self) -> bool:
        return bool(self.config.break_mode == "none")

    def dataset(self, split: str) -> TokenBlocks:
        return self.blocks(split)

    def training_set(self, epoch: int) -> TokenBlocks:
        return self.blocks("train", epoch=epoch)

    def collate(self, examples: Sequence[Any]) -> Batch:
        batch = collate_blocks(examples)
        for ids_BT in (batch.previous_BT, batch.target_BT):
            check_ids(ids_BT, self.vocabulary, name="the dictionary")
        return batch

    def model(self, config: ModelConfig) -> Model:
        return build_model(config, LanguageBatch, vocabulary=len(self.vocabulary))

    def text_size(self, split: str, targets: float) -> TextCount | None:
        source = self.open()
        whole = targets == source.split(split, source.source_lang).total
        return source.text_count(split) if whole else None
