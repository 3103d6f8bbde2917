"""The base classes of loaded models."""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch

from seqtk.checkpoint.model_file import LoadedModel
from seqtk.config import legacy, schema
from seqtk.criterions import Criterion, CriterionConfig, criterions
from seqtk.criterions.cross_entropy import CrossEntropyConfig
from seqtk.data.labelled_text import Columns
from seqtk.data.plan import BatchingConfig
from seqtk.generation.config import SearchConfig
from seqtk.generation.decode import (
    BatchTranslator,
    Sentence,
    Translation,
    decode_in_order,
    decoding_map,
)
from seqtk.generation.formats import Writer
from seqtk.metrics import metrics
from seqtk.tasks import tasks
from seqtk.tasks.other_data import other_data, parallel_lines
from seqtk.tasks.report import Report
from seqtk.utils.errors import UserError, how_many, nearest

DECODING_BATCH = BatchingConfig(max_tokens=4096, max_sentences=64)


class Pipeline:
    """A trained model, or an ensemble, in evaluation mode.

    Attributes:
        task: The task of the (first) model.
        models: The models.
        config: The plain tree of the configuration that the first model was trained with.
        info: The origin of the first model: update, epoch, metrics.
    """

    def __init__(self, loaded: Sequence[LoadedModel], *, device: torch.device, bf16: bool = False) -> None:
        self.task: Any = loaded[0].task
        self.models = tuple(item.model for item in loaded)
        self.config, self.info = loaded[0].config, loaded[0].info
        self.device, self.bf16 = device, bf16

    def translate(self, sentences: Sequence[str], **settings: Any) -> list[str]:
        """Translates sentences. Only for translation models."""
        raise self._unsupported("translate")

    def generate(self, prompts: Sequence[str] = ("",), **settings: Any) -> list[str]:
        """Continues prompts. Only for language models."""
        raise self._unsupported("generate")

    def classify(self, texts: Sequence[Any], *, truncate: bool | None = None) -> list[str]:
        """Classifies texts. Only for classifiers."""
        raise self._unsupported("classify")

    def score(self, *texts: Sequence[str]) -> list[float]:
        """Scores given texts. Only for translation models and language models."""
        raise self._unsupported("score")

    def evaluate(
        self,
        data: str | None = None,
        *,
        split: str = "test",
        input: str | None = None,
        references: Sequence[str] = (),
        columns: Columns | None = None,
        names: Sequence[str] | None = None,
        decode: bool = True,
        search: SearchConfig | None = None,
        batching: BatchingConfig | None = None,
        resamples: int = 1000,
        progress: bool = False,
    ) -> Report:
        """Computes the metrics of a split or a text, for models of any task.

        Args:
            data: The location of the data. None: the data of training.
            split: The split of the data.
            input: A text file to evaluate on instead of a split; "-" is standard input.
            references: For `input`: the files of its references, line by line.
            columns: For `input` of a classifier: the columns of the file with the texts and the classes.
            names: The metrics. None: the task's metrics that are available.
            decode: Whether the model's outputs are computed, for metrics that need them.
            search: The settings of the search.
            batching: The size of a batch. None: 4096 tokens.
            resamples: The bootstrap samples that intervals are computed from, for metrics of classes. 0: no intervals.
            progress: Shows a bar on a terminal.

        Returns:
            A `Report`: `report.scores["bleu"].value`, `report.outputs`, `report.to_dict()`.

        Raises:
            UserError: For data that cannot be read, and metrics that are not available.
        """
        if len(self.models) > 1:
            raise UserError("checkpoint= names several models.", "An evaluation takes one model.")
        if references and input is None:
            raise UserError("reference= needs input=.", "A split already has references.")
        for name in names or ():
            if name not in metrics:
                raise UserError(f"metrics={name}: there is no such metric.", nearest(name, metrics))
        streams = self.config.get("batch", {}).get("streams") if self.task.continuous else None
        batching = batching or DECODING_BATCH
        with other_data(
            self.task, data=data, split=split, input=input, references=references, columns=columns
        ) as split:
            further = parallel_lines([("reference", path) for path in references])[1:]
            return cast(
                Report,
                self.task.evaluate(
                    self.models[0],
                    split,
                    criterion=self._criterion(),
                    names=names,
                    decode=decode,
                    search=search,
                    references=further,
                    batching=dataclasses.replace(batching, streams=streams),
                    bf16=self.bf16,
                    resamples=resamples,
                    progress=progress,
                ),
            )

    def _criterion(self) -> Criterion:
        """Returns the training criterion, so that `loss` equals training's; cross entropy for imported models."""
        tree = self.config.get("criterion")
        config = CrossEntropyConfig() if tree is None else legacy.from_dict(CriterionConfig, tree)
        return criterions.build(config)

    def _unsupported(self, method: str) -> UserError:
        name = tasks.name_of(type(self.task.config))
        return UserError(f"{method}() is not available for a model of task '{name}'.")


class TextPipeline(Pipeline):
    """The base of translation models and language models: a search over lines of text."""

    decoder_type: type[BatchTranslator] = BatchTranslator
    samples_by_default = False
    free_text = False
    """Whether outputs may have several lines."""

    def sentence(self, line: str) -> Sentence:
        """Returns a line of text as input for `decode`."""
        raise NotImplementedError

    def writer(self, *, detokenize: bool = True) -> Writer:
        """Returns a writer that converts the results of `decode` to text."""
        return Writer(self.task, detokenize=detokenize, free_text=self.free_text)

    def search_config(self, **settings: Any) -> SearchConfig:
        """Returns the settings of a search. Raises UserError for an unknown setting or a wrong value."""
        return self.resolve(schema.from_dict(SearchConfig, settings))

    def resolve(self, search: SearchConfig) -> SearchConfig:
        """Returns `search` with this model's default of `sampling`. Raises UserError for settings that do not fit."""
        fields = {name: getattr(search, name) for name in SearchConfig.__dataclass_fields__}
        if search.sampling is None:
            fields["sampling"] = self.samples_by_default
        search = SearchConfig(**fields)
        search.check()
        size = len(self.task.target_vocabulary)
        if not search.sampling and search.width > size:
            raise UserError(f"beam={search.width} is more than the {size:,} tokens of the vocabulary.")
        return search

    def decode(
        self,
        sentences: Iterable[Sentence],
        search: SearchConfig,
        *,
        batching: BatchingConfig = DECODING_BATCH,
        window: int = 8192,
        first: int = 0,
        score_targets: bool = False,
        workers: int = 0,
    ) -> Iterator[Translation]:
        """Yields the hypotheses for each sentence, in input order.

        Args:
            sentences: The input, read lazily.
            search: The settings of the search (see `search_config`).
            batching: The size of a batch.
            window: How many sentences are read before the first result.
            first: The index of the first sentence; sampling depends on it.
            score_targets: Score the targets of the sentences instead of searching.
            workers: Processes of one thread each that share the work on a CPU. 0: this process.
        """
        decoder = self.decoder_type(
            models=self.models,
            vocabulary=self.task.target_vocabulary,
            search=search,
            score_targets=score_targets,
            device=self.device,
            bf16=self.bf16,
        )
        with decoding_map(decoder, workers=workers) as map_batches:
            yield from decode_in_order(
                sentences, decoder, batching=batching, window=window, first=first, map_batches=map_batches
            )

    def _outputs(self, sentences: Iterable[Sentence], search: SearchConfig) -> Iterator[str]:
        """Yields the text of every hypothesis."""
        writer = self.writer()
        for translation in warn_truncated(self.decode(sentences, search)):
            yield from (writer.hypothesis(translation, rank) for rank in range(len(translation.hypotheses)))

    def _scores(self, sentences: Iterable[Sentence]) -> list[float]:
        found = warn_truncated(self.decode(sentences, SearchConfig(), score_targets=True))
        return [translation.hypotheses[0].score for translation in found]


def as_lines(texts: Sequence[str], name: str, *, count: int | None = None) -> Sequence[str]:
    """Returns `texts` unchanged. Raises TypeError for one string, and UserError unless there are `count` texts."""
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a list of strings, not one string")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a list of strings, not of {type(text).__name__}")
    if count is not None and len(texts) != count:
        raise UserError(f"There are {how_many(len(texts), name.removesuffix('s'))} for {count:,} inputs.")
    return texts


def warn_truncated(translations: Iterable[Translation]) -> Iterator[Translation]:
    """Yields the translations, then warns if inputs or prefixes were truncated."""
    sources = prefixes = 0
    for translation in translations:
        sources += translation.truncated
        prefixes += translation.prefix_truncated
        yield translation
    for count, noun in ((sources, "input"), (prefixes, "prefix")):
        if count:
            warnings.warn(f"{noun} too long for the model, cut at the end: {count:,}", stacklevel=3)
