"""A task with a source, a head and a metric: predicting the class of a question."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqtk.config.fields import setting
from seqtk.data.batch import pad_rows
from seqtk.data.encoder_batches import ClassBatch
from seqtk.data.sources import Source, SourceConfig, TextSource, sources
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.search import SearchConfig
from seqtk.metrics import Evaluation, Metric, Output, Score, metrics
from seqtk.models import Model, ModelConfig, build_model
from seqtk.modules.pooled_head import Pool, PooledHead
from seqtk.tasks import TaskConfig, tasks
from seqtk.tasks.text import TextTask, tokenizer_assets, tokenizer_from


@dataclass(frozen=True)
class LabelledTextConfig(SourceConfig):
    """A config without settings."""


@sources.register("labelled_text", LabelledTextConfig)
class LabelledText(TextSource):
    """Reads `task.data/SPLIT.txt`. Each line has a label, a space and the text."""

    sides = ("text", "label")

    def read(self, split: str) -> Iterator[tuple[str, str]]:
        for line in (Path(self.name) / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            label, _, text = line.partition(" ")
            yield text, label


@metrics.register("f1", unit="%", higher_is_better=True)
class MacroF1(Metric):
    """The mean of F1 over the classes."""

    needs = ("outputs",)

    def compute(self, evaluation: Evaluation) -> Score:
        pairs = [(item.output, item.references[0]) for item in evaluation.outputs]
        classes = sorted({label for pair in pairs for label in pair})
        hits = [2 * pairs.count((label, label)) / sum(pair.count(label) for pair in pairs) for label in classes]
        return Score(100 * sum(hits) / len(hits))


@dataclass(frozen=True)
class QuestionsConfig(TaskConfig):
    """Config of the task `questions`."""

    source: SourceConfig = LabelledTextConfig()
    pool: Pool = setting("mean", help="How the features of a question become one vector.")


class QuestionSet:
    """The questions of a split as `(index, ids, class)`."""

    def __init__(self, source: Source, split: str, classes: Sequence[str]) -> None:
        self.questions = source.split(split, source.source_lang)
        self.lines = source.lines(split, source.source_lang)
        self.labels = source.lines(split, source.target_lang)
        self.classes = [classes.index(label) for label in self.labels]
        self.sizes_ND, self.truncated = self.questions.sizes[:, None], 0

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, int]:
        return index, self.questions[index], self.classes[index]


@tasks.register("questions", QuestionsConfig)
class QuestionsTask(TextTask):
    """Predicts the class of a question."""

    metrics = ("loss", "nll", "accuracy", "f1")
    sides = ("source",)
    pairs = True

    def __init__(self, config: QuestionsConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config)
        if assets is None:
            source = self.open()
            self.vocabulary = source.vocabulary(source.source_lang)
            self.classes = sorted(set(source.lines("train", source.target_lang)))
            self.tokenizer = source.tokenizer(source.source_lang)
        else:
            self.vocabulary = Vocabulary.from_text(assets["text.dict"])
            self.classes = assets["classes"].split("\n")
            self.tokenizer = tokenizer_from(assets, "text")

    def assets(self) -> dict[str, str]:
        return {
            "text.dict": self.vocabulary.to_text(),
            "classes": "\n".join(self.classes),
            **tokenizer_assets(self.tokenizer, "text"),
        }

    def connect(self, source: Source) -> None:
        if hasattr(self, "tokenizer"):
            source.use(source.source_lang, self.vocabulary, self.tokenizer)

    def dataset(self, split: str) -> QuestionSet:
        return QuestionSet(self.open(), split, self.classes)

    def collate(self, examples: Sequence[Any]) -> ClassBatch:
        indices, questions, classes = zip(*examples, strict=True)
        return ClassBatch(torch.tensor(indices), len(examples), pad_rows(questions), torch.tensor(classes))

    def model(self, config: ModelConfig) -> Model:
        head = partial(PooledHead, classes=len(self.classes), pool=self.config.pool)
        return build_model(config, ClassBatch, vocabulary=len(self.vocabulary), head=head)

    def outputs(self, model: Model, batch: ClassBatch, dataset: QuestionSet, search: SearchConfig) -> list[Output]:
        features_BSD, _ = model(batch)
        found_B = model.head.logits(features_BSD, pad_BT=batch.pad).argmax(1)
        return [
            Output(index, dataset.lines[index], self.classes[found], (dataset.labels[index],))
            for index, found in zip(batch.ids_B.tolist(), found_B.tolist(), strict=True)
        ]
