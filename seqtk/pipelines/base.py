"""The base classes of pipelines. A pipeline contains one or more loaded models."""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch

from seqtk.checkpoint.trained_model import LoadedModel
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
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

DECODING_BATCH = BatchingConfig(max_tokens=4096, max_sentences=64)


class Pipeline:
    """A trained model, or an ensemble, in evaluation mode.

    Attributes:
        task: The task of the (first) model.
        models: The models.
        config: The configuration with which the first model was trained, as nested dictionaries.
        info: The update, epoch and metrics of the first model.
    """

    def __init__(self, loaded: Sequence[LoadedModel], *, device: torch.device, bf16: bool = False) -> None:
        self.task: Any = loaded[0].task
        self.models = tuple(item.model for item in loaded)
        self.config, self.info = loaded[0].config, loaded[0].info
        self.device, self.bf16 = device, bf16

    def translate(self, sentences: Iterable[str], **settings: Any) -> list[str]:
        """Translates sentences. Raises UserError if the model is not a translation model."""
        raise self._unsupported("translate")

    def generate(self, prompts: Iterable[str] = ("",), **settings: Any) -> list[str]:
        """Continues prompts. Raises UserError if the model is not a language model."""
        raise self._unsupported("generate")

    def classify(self, texts: Sequence[Any], *, truncate: bool | None = None) -> list[str]:
        """Classifies texts. Raises UserError if the model is not a classifier."""
        raise self._unsupported("classify")

    def score(self, *texts: Iterable[str]) -> list[float]:
        """Scores texts. Raises UserError if the model is neither a translation model nor a language model."""
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
        """Computes metrics of the model on a split or a text. Works for all tasks.

        Args:
            data: The location of the data. None: the training data.
            split: The split of the data.
            input: A text file to evaluate on instead of a split. "-": standard input.
            references: With `input`: the files of the references, with one reference per line.
            columns: With `input` and a classifier: the columns of the file that contain the texts and the classes.
            names: The names of the metrics. None: all available metrics of the task.
            decode: True to decode the model's outputs, for metrics that need them.
            search: The settings of the search.
            batching: The maximum size of a batch. None: 4096 tokens.
            resamples: The number of bootstrap samples for confidence intervals of classifiers. 0: no intervals.
            progress: True to show a progress bar on a terminal.

        Returns:
            A `Report`: `report.scores["bleu"].value`, `report.outputs`, `report.to_dict()`.

        Raises:
            UserError: If the data cannot be read, or if a metric is not available.
        """
        if len(self.models) > 1:
            raise UserError("checkpoint= has several models: ensembles cannot be evaluated.", "Set it to one model.")
        if references and input is None:
            raise UserError("reference= requires input=.", "A split already has references. Remove reference=.")
        for name in names or ():
            if name not in metrics:
                raise UserError(f"metrics={name}: there is no metric with this name.", nearest(name, metrics))
        streams = self.config.get("batch", {}).get("streams") if self.task.continuous else None
        batching = batching or DECODING_BATCH
        with other_data(
            self.task, data=data, split=split, input=input, references=references, columns=columns
        ) as split:
            more_references = parallel_lines([("reference", path) for path in references])[1:]
            return cast(
                Report,
                self.task.evaluate(
                    self.models[0],
                    split,
                    criterion=self._criterion(),
                    names=names,
                    decode=decode,
                    search=search,
                    references=more_references,
                    batching=dataclasses.replace(batching, streams=streams),
                    bf16=self.bf16,
                    resamples=resamples,
                    progress=progress,
                ),
            )

    def _criterion(self) -> Criterion:
        """Returns the training criterion, so that `loss` is the training loss. Imported models have cross entropy."""
        tree = self.config.get("criterion")
        config = CrossEntropyConfig() if tree is None else legacy.from_dict(CriterionConfig, tree)
        return criterions.build(config)

    def _unsupported(self, method: str) -> UserError:
        name = tasks.name_of(type(self.task.config))
        return UserError(f"{method}() is not available for a model of task '{name}'.")


class TextPipeline(Pipeline):
    """Base class of the pipelines of translation models and language models, which decode lines of text."""

    decoder_type: type[BatchTranslator] = BatchTranslator
    samples_by_default = False
    free_text = False
    """True if an output may have several lines."""

    def sentence(self, line: str) -> Sentence:
        """Converts a line of text to an input of `decode`."""
        raise NotImplementedError

    def writer(self, *, detokenize: bool = True) -> Writer:
        """Returns a writer that converts the results of `decode` to text."""
        return Writer(self.task, detokenize=detokenize, free_text=self.free_text)

    def search_config(self, **settings: Any) -> SearchConfig:
        """Returns the settings of a search. Raises UserError if a setting is unknown or its value is invalid."""
        return self.resolve(schema.from_dict(SearchConfig, settings))

    def resolve(self, search: SearchConfig) -> SearchConfig:
        """Returns `search` with the model's default in place of `sampling=None`. Raises UserError if it is invalid."""
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
            batching: The maximum size of a batch.
            window: The number of sentences that are read and decoded at a time.
            first: The index of the first sentence. The random numbers of sampling depend on it.
            score_targets: True to score the targets of the sentences instead of decoding.
            workers: The number of worker processes on a CPU, each with one thread. 0: decode in this process.
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
        """Decodes the sentences, and yields the text of each hypothesis."""
        writer = self.writer()
        for translation in warn_truncated(self.decode(sentences, search)):
            yield from (writer.hypothesis(translation, rank) for rank in range(len(translation.hypotheses)))

    def _scores(self, sentences: Iterable[Sentence]) -> list[float]:
        translations = warn_truncated(self.decode(sentences, SearchConfig(), score_targets=True))
        return [translation.hypotheses[0].score for translation in translations]


def as_lines(texts: Iterable[str], name: str, *, count: int | None = None) -> Sequence[str]:
    """Returns `texts` after checking it.

    Raises TypeError if it is not a list of strings, or UserError if its length is not `count`.
    """
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a list of strings, not one string")
    texts = list(texts)  # it may be an iterator
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a list of strings, not of {type(text).__name__}")
    if count is not None and len(texts) != count:
        raise UserError(f"The number of {name} is {len(texts):,}, but the number of inputs is {count:,}.")
    return texts


def warn_truncated(translations: Iterable[Translation]) -> Iterator[Translation]:
    """Yields the translations. Warns at the end if inputs or prefixes were truncated."""
    sources = prefixes = 0
    for translation in translations:
        sources += translation.truncated
        prefixes += translation.prefix_truncated
        yield translation
    for count, noun in ((sources, "Inputs"), (prefixes, "Prefixes")):
        if count:
            warnings.warn(f"{noun} that were truncated to the model's maximum length: {count:,}", stacklevel=3)
