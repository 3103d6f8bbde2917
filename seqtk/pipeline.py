"""Trained models as Python objects: text in, text out.

    import seqtk
    model = seqtk.load("checkpoints/multi30k_synth")
    model.translate(["A man in an orange hat."], beam=5)

The decoding commands are thin over the same classes.
"""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import LoadedModel
from seqtk.config import schema
from seqtk.config.registry import load_plugins
from seqtk.data.blocks import BreakMode, ContextBlocks
from seqtk.data.corpus import find_text, read_blocks
from seqtk.data.databin import DataBin
from seqtk.data.plan import BatchingConfig
from seqtk.data.report import TextCount, count_text
from seqtk.data.temporary_databin import encode_text
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.config import SearchConfig
from seqtk.generation.decode import (
    BatchGenerator,
    BatchTranslator,
    Sentence,
    Translation,
    decode_in_order,
    decoding_map,
)
from seqtk.generation.evaluation import score_lines, score_stream
from seqtk.generation.formats import Writer
from seqtk.metrics import Evaluation, Score, metrics
from seqtk.tasks import Task, tasks
from seqtk.tasks.language_modeling import LanguageModelingTask
from seqtk.tasks.text import check_made
from seqtk.tasks.translation import TranslationTask
from seqtk.utils.errors import UserError, how_many, naming
from seqtk.utils.progress import Reporter
from seqtk.utils.text_io import text_output

Path = str | os.PathLike[str]
SCORING_BATCH = BatchingConfig(max_tokens=4096)
DECODING_BATCH = BatchingConfig(max_tokens=4096, max_sentences=64)


def load(
    path: Path | Sequence[Path],
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    user_dir: str | None = None,
) -> "Pipeline":
    """Loads a trained model.

    Args:
        path: A model file, the folder of one checkpoint, or the folder of a run (its best model). Several are an
            ensemble, which averages their probabilities.
        device: "auto" uses a GPU if there is one.
        precision: Of matrix products; scores are float32 either way.
        user_dir: A package or module with layers and tasks of your own, imported first.

    Returns:
        A `TranslationPipeline`, a `GenerationPipeline` for a language model, or else a `Pipeline`.

    Raises:
        UserError: For a path that holds no model, or models that cannot be an ensemble.
    """
    load_plugins(user_dir)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU.", "Set device=cpu or device=auto.")
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise UserError("checkpoint= names no model.")
    loaded = [model_file.load(each, device=place) for each in paths]
    for each, item in zip(paths, loaded, strict=True):
        if type(item.task) is not type(loaded[0].task):
            raise UserError(f"{each} and {paths[0]} are models for different tasks: they cannot be an ensemble.")
        if _vocabularies(item.task) != _vocabularies(loaded[0].task):
            raise UserError(f"{each} and {paths[0]} have different vocabularies: they cannot be an ensemble.")
    kinds: dict[type[Task], type[Pipeline]] = {
        TranslationTask: TranslationPipeline,
        LanguageModelingTask: GenerationPipeline,
    }
    kind = next((kind for task, kind in kinds.items() if isinstance(loaded[0].task, task)), Pipeline)
    return kind(loaded, device=place, bf16=precision == "bf16")


class Pipeline:
    """A trained model, or an ensemble, in evaluation mode.

    Attributes:
        task: The task of the (first) model.
        models: The models.
        config: The plain tree of the configuration that the first model was trained with.
        info: Where the first model comes from: update, epoch, metrics.
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

    def score(self, *texts: Sequence[str]) -> list[float]:
        """Scores given texts. Only for translation models and language models."""
        raise self._unsupported("score")

    def _unsupported(self, method: str) -> UserError:
        name = tasks.name_of(type(self.task.config))
        return UserError(f"{method}() is not available for a model of task '{name}'.")


class TextPipeline(Pipeline):
    """What translation models and language models share: a search over lines of text."""

    decoder_type: type[BatchTranslator] = BatchTranslator
    samples_by_default = False
    free_text = False
    """Whether outputs may have several lines."""

    def sentence(self, line: str) -> Sentence:
        """A line of text as input for `decode`."""
        raise NotImplementedError

    def writer(self, *, detokenize: bool = True) -> Writer:
        """Converts what `decode` yields into text."""
        return Writer(self.task, detokenize=detokenize, free_text=self.free_text)

    def search_config(self, **settings: Any) -> SearchConfig:
        """The settings of a search. Raises UserError for an unknown setting or a wrong value."""
        return self.resolve(schema.from_dict(SearchConfig, settings))

    def resolve(self, search: SearchConfig) -> SearchConfig:
        """`search` with the default of `sampling` for this model. Raises UserError for settings that do not fit it."""
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
        """The text of every hypothesis."""
        writer = self.writer()
        for translation in _warn_truncated(self.decode(sentences, search)):
            yield from (writer.hypothesis(translation, rank) for rank in range(len(translation.hypotheses)))

    def _scores(self, sentences: Iterable[Sentence]) -> list[float]:
        found = _warn_truncated(self.decode(sentences, SearchConfig(), score_targets=True))
        return [translation.hypotheses[0].score for translation in found]


class TranslationPipeline(TextPipeline):
    """A translation model, or an ensemble of them."""

    task: TranslationTask

    def translate(
        self, sentences: Sequence[str], *, prefixes: Sequence[str] | None = None, **settings: Any
    ) -> list[str]:
        """Translates sentences.

        Args:
            sentences: One line of source text each.
            prefixes: Text that each translation must begin with.
            **settings: Fields of `SearchConfig`: `beam=5`, `length_penalty=0.6`, `sampling=True`, …

        Returns:
            One translation for each sentence. With `nbest=n`, the n best for each sentence, one after the other.
        """
        lines = _lines(sentences, "sentences")
        begin = [None] * len(lines) if prefixes is None else _lines(prefixes, "prefixes", count=len(lines))
        inputs = (self.sentence(line, prefix=prefix) for line, prefix in zip(lines, begin, strict=True))
        return list(self._outputs(inputs, self.search_config(**settings)))

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:  # type: ignore[override]
        """The mean log-probability (natural, per token, EOS counted) of each target given its source."""
        lines = _lines(sources, "sources")
        pairs = zip(lines, _lines(targets, "targets", count=len(lines)), strict=True)
        return self._scores(self.sentence(line, references=(target,)) for line, target in pairs)

    def sentence(
        self, line: str, *, references: Sequence[str] = (), prefix: str | None = None, prefix_size: int = 0
    ) -> Sentence:
        """A line of text as input for `decode`.

        Args:
            line: The source text.
            references: Its reference translations.
            prefix: Text that the translation must begin with.
            prefix_size: How many tokens of the first reference the translation must begin with.
        """
        task, target, begin = self.task, None, None
        if references:
            target = task.target_vocabulary.encode(task.target_tokenizer.encode(references[0]))
            begin = target[:prefix_size]
        if prefix is not None:
            begin = task.target_vocabulary.encode(task.target_tokenizer.encode(prefix), eos=False)
        return Sentence(
            task.source_vocabulary.encode(task.source_tokenizer.encode(line)),
            target=target,
            prefix=begin,
            source_text=line,
            references=tuple(references),
            prefix_text=prefix,
        )

    def split(self, split: str = "test", *, data: str | None = None, prefix_size: int = 0) -> Iterator[Sentence]:
        """The sentences of a split of a data-bin, by default of the one that the model was trained on."""
        task = self.task
        directory = data or task.config.data
        if not directory:
            raise UserError("There is nothing to translate.", "Set input=FILE, or data=DATA-BIN.")
        check_made(task.config, directory)
        databin = DataBin(directory, source_lang=task.source_lang, target_lang=task.target_lang)
        check_dictionary(databin, databin.source_lang, task.source_vocabulary)
        check_dictionary(databin, databin.target_lang, task.target_vocabulary)
        task.open(databin)
        dataset = task.dataset(split)
        for index, source, target in map(dataset.__getitem__, range(len(dataset))):
            yield Sentence(
                source,
                target=target,
                prefix=target[:prefix_size],
                source_text=dataset.source_lines[index] if dataset.source_lines else None,
                references=(dataset.target_lines[index],) if dataset.target_lines else (),
            )


class GenerationPipeline(TextPipeline):
    """A language model, or an ensemble of them."""

    task: LanguageModelingTask
    decoder_type = BatchGenerator
    samples_by_default = True
    free_text = True

    def generate(self, prompts: Sequence[str] = ("",), **settings: Any) -> list[str]:
        """Continues prompts by sampling.

        Args:
            prompts: Texts to continue. The default is one empty prompt.
            **settings: Fields of `SearchConfig`: `temperature=0.8`, `top_k=40`, `nbest=3`, `sampling=False`, …

        Returns:
            One text for each prompt, which begins with the prompt. With `nbest=n`, n texts for each prompt, one after
            the other.
        """
        inputs = map(self.sentence, _lines(prompts, "prompts"))
        return list(self._outputs(inputs, self.search_config(**settings)))

    def score(self, texts: Sequence[str]) -> list[float]:  # type: ignore[override]
        """The mean log-probability (natural, per token, EOS counted) of each text, read as one line of its own."""
        vocabulary, tokenizer = self.task.vocabulary, self.task.tokenizer
        rows = [vocabulary.encode(tokenizer.encode(text)) for text in _lines(texts, "texts")]
        return self._scores(Sentence(row, target=row) for row in rows)

    def score_corpus(
        self,
        *,
        data: str | None = None,
        split: str = "test",
        input: str | None = None,
        text: str | None = None,
        break_mode: BreakMode | None = None,
        tokens_per_sample: int | None = None,
        context_window: int = 0,
        streams: int | None = None,
        batching: BatchingConfig = SCORING_BATCH,
        output: str | None = None,
        progress: bool = False,
    ) -> "CorpusScores":
        """Scores every token of a text once.

        Args:
            data: A data-bin directory; by default the one that the model was trained on.
            split: The split of `data`.
            input: A text file instead, read with the model's vocabulary; "-" is standard input.
            text: The original text, counted for metrics per word and byte. None: as counted by preprocessing.
            break_mode: How the text is cut into samples. None: as in training.
            tokens_per_sample: Most tokens that a sample reads, context included. None: as in training.
            context_window: How many of these are context, read again but not scored again.
            streams: For models with recurrent memory: in how many contiguous streams the text is read. None: as in
                training.
            batching: The size of a batch.
            output: A file for the scores of all tokens, one JSON line for each line of the text.
            progress: Shows a bar on a terminal.
        """
        if input is not None and data is not None:
            raise UserError("input= and data= are both set.", "Set one of them: a text, or a split of a data-bin.")
        if streams is not None and context_window:
            raise UserError(
                "streams= and context_window= are both set.",
                "Recurrent memory replaces the context window: set one of them.",
            )
        task = self.task
        with contextlib.ExitStack() as stack:
            databin, split = stack.enter_context(self._corpus(data, split, input))
            task.open(databin)
            check_dictionary(databin, databin.source_lang, task.vocabulary)
            blocks = ContextBlocks(
                databin.split(split, databin.source_lang),
                break_mode=break_mode or task.config.break_mode,
                tokens_per_sample=tokens_per_sample or task.config.tokens_per_sample,
                context_window=context_window,
            )
            if blocks.alone.break_mode == "none" and not context_window:
                streams = streams or self.config.get("batch", {}).get("streams")
            elif streams is not None:
                raise UserError("streams= reads the text without regard to lines.", "Set break_mode=none.")
            size = databin.text_count(split) if text is None else _count(text)
            # Opened before the work, so that an output that cannot be written is an error at once.
            file = None if output is None else stack.enter_context(text_output(output))
            bar = stack.enter_context(Reporter(progress=progress).bar(blocks.items.total, "", unit=" tokens"))
            scores = score_stream(
                self.models,
                blocks,
                batching=batching,
                device=self.device,
                bf16=self.bf16,
                streams=streams,
                advance=bar.update,
            )
            if file is not None:
                file.writelines(f"{line}\n" for line in score_lines(blocks.items, scores, task.vocabulary))
        if not scores.tokens:
            raise UserError("There is no token to score.", "The text is empty, or break_mode leaves all of it out.")
        return CorpusScores(
            nll=scores.nll,
            lines=len(blocks.items),
            tokens=blocks.items.total,
            scored_tokens=scores.tokens,
            unknown_tokens=scores.unknown,
            samples=len(blocks),
            text=size,
        )

    @contextlib.contextmanager
    def _corpus(self, data: str | None, split: str, input: str | None) -> Iterator[tuple[DataBin, str]]:
        """The data-bin and its split; for a text, a temporary data-bin."""
        task = self.task
        if input is None:
            directory = data or task.config.data.split(",")[0]
            if not directory:
                raise UserError("There is nothing to score.", "Set input=FILE, or data=DATA-BIN.")
            check_made(task.config, directory)
            yield DataBin(directory), split
            return
        with tempfile.TemporaryDirectory(prefix="seqtk-eval-lm-") as folder:
            if input == "-":
                path = pathlib.Path(folder) / "standard-input"
                with naming(path), open(path, "wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                path = find_text(input, None)
            made = encode_text(
                path, pathlib.Path(folder) / "made", vocabulary=task.vocabulary, tokenizer=task.tokenizer
            )
            yield made, "test"

    def sentence(self, line: str) -> Sentence:
        """A prompt as input for `decode`."""
        ids = self.task.vocabulary.encode(self.task.tokenizer.encode(line))
        return Sentence(ids, prefix=ids[:-1], source_text=line, prefix_text=line)


@dataclass(frozen=True)
class CorpusScores:
    """The log-likelihood of a text under a language model, and its size."""

    nll: float
    """Σ -log p over the scored tokens, in nats."""
    lines: int
    tokens: int
    scored_tokens: int
    unknown_tokens: int
    samples: int
    text: TextCount | None
    """The size of the original text, if it is known."""

    @property
    def metrics(self) -> dict[str, Score]:
        """Every metric that is available; those per unit of the text only if all of it was scored."""
        text = self.text if self.scored_tokens == self.tokens else None
        evaluation = Evaluation({"nll": (self.nll, float(self.scored_tokens))}, text=text)
        return metrics.compute(LanguageModelingTask.metrics, evaluation)


def _count(text: str) -> TextCount:
    blocks = read_blocks((find_text(text, None),))
    return sum((count_text(lines) for (lines,) in blocks), start=TextCount())


def check_dictionary(data: DataBin, lang: str | None, vocabulary: Vocabulary) -> None:
    """Raises UserError unless the data-bin has the model's dictionary."""
    if data.vocabulary(lang) != vocabulary:
        of = f" of '{lang}'" if lang else ""
        raise UserError(
            f"The dictionary{of} in {data.directory} differs from the model's.",
            "Set input=FILE to the text itself, or preprocess it with the model's dictionary.",
        )


def _vocabularies(task: Task) -> list[Any]:
    return [getattr(task, name, None) for name in ("source_vocabulary", "target_vocabulary")]


def _lines(texts: Sequence[str], name: str, *, count: int | None = None) -> Sequence[str]:
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a list of strings, not one string")
    if count is not None and len(texts) != count:
        raise UserError(f"There are {how_many(len(texts), name.removesuffix('s'))} for {count:,} inputs.")
    return texts


def _warn_truncated(translations: Iterable[Translation]) -> Iterator[Translation]:
    sources = prefixes = 0
    for translation in translations:
        sources += translation.truncated
        prefixes += translation.prefix_truncated
        yield translation
    for count, noun in ((sources, "input"), (prefixes, "prefix")):
        if count:
            warnings.warn(f"{noun} too long for the model, cut at the end: {count:,}", stacklevel=3)
