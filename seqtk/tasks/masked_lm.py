"""Masked language modeling (Devlin et al. 2019, BERT): the model predicts masked tokens of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seqtk.config.fields import setting
from seqtk.data.batch import Batch, check_ids, pad_rows
from seqtk.data.encoder_batches import MaskedBatch
from seqtk.data.masking import EVALUATION, MaskedBlocks, Masking, MaskingConfig
from seqtk.data.vocabulary import PAD
from seqtk.models import Model, ModelConfig, build_model
from seqtk.tasks.base import tasks
from seqtk.tasks.language_modeling import LanguageModelingConfig, SampleTask


@dataclass(frozen=True)
class MaskedLMConfig(LanguageModelingConfig):
    """Settings of masked language modeling: the data, how it is split into samples, and the masking."""

    tokens_per_sample: int = setting(512, at_least=1, help="Maximum number of tokens in a sample.")
    masking: MaskingConfig = MaskingConfig()


@tasks.register("masked_lm", MaskedLMConfig)
class MaskedLMTask(SampleTask):
    """Masked language modeling: the model predicts masked tokens from the text around them."""

    metrics = ("loss", "nll", "ppl", "bits_per_token", "accuracy")
    sides = ("source",)

    def __init__(self, config: MaskedLMConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config, assets=assets)
        self.masking = Masking(config.masking, vocabulary=self.vocabulary, tokenizer=self.tokenizer)

    def dataset(self, split: str) -> MaskedBlocks:
        return MaskedBlocks(self.blocks(split), self.masking, epoch=EVALUATION)

    def training_set(self, epoch: int) -> MaskedBlocks:
        return MaskedBlocks(self.blocks("train", epoch=epoch), self.masking, epoch=epoch)

    def collate(self, examples: Sequence[Any]) -> Batch:
        indices, sources, targets = zip(*examples, strict=True)
        source_BS, target_BS = pad_rows(sources), pad_rows(targets)
        for ids_BS in (source_BS, target_BS):
            check_ids(ids_BS, self.vocabulary, name="the dictionary")
        weight = int((target_BS != PAD).sum())
        return MaskedBatch(torch.tensor(indices), weight, source_BS=source_BS, target_BS=target_BS)

    def model(self, config: ModelConfig) -> Model:
        return build_model(config, MaskedBatch, vocabulary=len(self.vocabulary))
