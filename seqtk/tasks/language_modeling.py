"""Language modelling: a stream of tokens in, nats and bits of each unit of the text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqtk.data.batch import Batch, check_ids, collate_blocks
from seqtk.data.blocks import BreakMode, TokenBlocks
from seqtk.data.databin import DataBin
from seqtk.data.report import TextCount
from seqtk.data.vocabulary import Vocabulary
from seqtk.models import Model, ModelConfig, build_model
from seqtk.tasks.base import Assets, Task, TaskConfig, tasks
from seqtk.tasks.text import open_data, tokenizer_assets, tokenizer_from
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class LanguageModelingConfig(TaskConfig):
    """A data-bin of one-sided text, as seqtk-preprocess or fairseq-preprocess wrote it, and how samples are cut."""

    data: str = ""  # the data-bin directory; several, with commas, are shards: one an epoch, in turn
    tokens_per_sample: int = 512  # targets in a sample
    break_mode: BreakMode = "none"  # complete: samples of whole lines; complete_doc: of one document; eos: of one line


@tasks.register("language_modeling", LanguageModelingConfig)
class LanguageModelingTask(Task):
    """One vocabulary, one tokenizer, and the blocks of a stream. Validation and test text are the first shard's."""

    metrics = ("loss", "nll", "ppl", "bits_per_token", "bits_per_byte", "bits_per_character", "word_ppl")

    def __init__(self, config: LanguageModelingConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config)
        self._data: DataBin | None = None
        if assets is None:
            data = self.open()
            self.vocabulary = data.vocabulary(data.source_lang)
            self.tokenizer = data.tokenizer(data.source_lang)
            for number in range(1, len(self._directories())):  # not only when their epoch comes
                self._check_shard(self._shard(number))
        else:
            self.vocabulary = Vocabulary.from_text(assets["text.dict"])
            self.tokenizer = tokenizer_from(assets, "text")
        # In the words of the search: what is read and what is written are of one kind.
        self.source_vocabulary = self.target_vocabulary = self.vocabulary
        self.source_tokenizer = self.target_tokenizer = self.tokenizer

    @property
    def continuous(self) -> bool:
        return bool(self.config.break_mode == "none")

    def assets(self) -> Assets:
        return {"text.dict": self.vocabulary.to_text(), **tokenizer_assets(self.tokenizer, "text")}

    def open(self, data: DataBin | None = None) -> DataBin:
        """The corpus: `data` from now on, or the first shard that the config names."""
        self._data = _one_sided(data) if data else self._data or self._shard(0)
        return self._data

    def dataset(self, split: str) -> TokenBlocks:
        return self._blocks(self.open(), split)

    def training_set(self, epoch: int) -> TokenBlocks:
        number = (epoch - 1) % max(1, len(self._directories()))
        data = self._shard(number) if number else self.open()
        return self._blocks(data, "train")

    def collate(self, examples: Sequence[Any]) -> Batch:
        batch = collate_blocks(examples)
        for ids_BT in (batch.previous_BT, batch.target_BT):
            check_ids(ids_BT, self.vocabulary, name="the dictionary")
        return batch

    def model(self, config: ModelConfig) -> Model:
        return build_model(config, vocabulary=len(self.vocabulary))

    def text(self, ids: Sequence[int]) -> str:
        """The text whose ids these are."""
        return self.tokenizer.decode(self.vocabulary.decode(ids))

    def text_size(self, split: str, targets: float) -> TextCount | None:
        data = self.open()
        whole = targets == data.split(split, data.source_lang).total
        return data.text_count(split) if whole else None

    def _directories(self) -> list[str]:
        return [directory for directory in self.config.data.split(",") if directory]

    def _shard(self, number: int) -> DataBin:
        directories = self._directories()
        return _one_sided(open_data(self.config, directories[number] if directories else None))

    def _check_shard(self, data: DataBin) -> None:
        if data.vocabulary(data.source_lang) != self.vocabulary:
            raise UserError(
                f"The shards {self.open().directory} and {data.directory} have different dictionaries.",
                "Preprocess every shard but the first with source_dict= (or sentencepiece=) of the first.",
            )
        data.split("train", data.source_lang)

    def _blocks(self, data: DataBin, split: str) -> TokenBlocks:
        return TokenBlocks(
            data.split(split, data.source_lang),
            break_mode=self.config.break_mode,
            tokens_per_sample=self.config.tokens_per_sample,
        )


def _one_sided(data: DataBin) -> DataBin:
    if data.target_lang is not None:
        raise UserError(
            f"{data.directory} holds pairs of {data.source_lang} and {data.target_lang}.",
            "A language model needs one-sided text: seqtk-preprocess without target_lang= makes it.",
        )
    return data
