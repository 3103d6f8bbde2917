"""The pipeline of language models, which continue prompts and score text."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from seqtk.data.blocks import BreakMode, ContextBlocks
from seqtk.data.corpus import find_text, read_blocks
from seqtk.data.plan import BatchingConfig
from seqtk.data.report import TextCount, count_text
from seqtk.generation.decode import BatchGenerator, Sentence
from seqtk.generation.evaluation import score_lines, score_stream
from seqtk.metrics import Evaluation, Score, metrics
from seqtk.pipelines.base import TextPipeline, as_lines
from seqtk.tasks.language_modeling import LanguageModelingTask
from seqtk.tasks.other_data import other_data
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from seqtk.utils.text_io import text_output

SCORING_BATCH = BatchingConfig(max_tokens=4096)


class GenerationPipeline(TextPipeline):
    """A language model, or an ensemble of language models."""

    task: LanguageModelingTask
    decoder_type = BatchGenerator
    samples_by_default = True
    free_text = True

    def generate(self, prompts: Iterable[str] = ("",), **settings: Any) -> list[str]:
        """Continues prompts by sampling.

        Args:
            prompts: Texts to continue. The default is one empty prompt.
            **settings: Fields of `SearchConfig`: `temperature=0.8`, `top_k=40`, `nbest=3`, `sampling=False`, …

        Returns:
            One text for each prompt, including the prompt. With `nbest=n`, n consecutive texts for each prompt.
        """
        inputs = map(self.sentence, as_lines(prompts, "prompts"))
        return list(self._outputs(inputs, self.search_config(**settings)))

    def score(self, texts: Iterable[str]) -> list[float]:  # type: ignore[override]
        """Returns the mean log-probability per token of each text, including EOS, in nats. A text is one line."""
        vocabulary, tokenizer = self.task.vocabulary, self.task.tokenizer
        rows = [vocabulary.encode(tokenizer.encode(text)) for text in as_lines(texts, "texts")]
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
        """Computes the log-probability of every token of a text once.

        Args:
            data: A data-bin folder. None: the training data.
            split: The split of `data`.
            input: A text file to score instead of a split, encoded with the model's vocabulary. "-": standard input.
            text: The original text, for metrics per word and per byte. None: its size is read from the data-bin.
            break_mode: How the text is split into samples. None: as in training.
            tokens_per_sample: The maximum number of tokens of a sample, including context. None: as in training.
            context_window: The number of tokens of a sample that are context: the model reads them again, without
                scoring them.
            streams: For models with recurrent state: the number of contiguous streams into which the text is split.
                None: as in training.
            batching: The maximum size of a batch.
            output: A file for the scores of all tokens, with one line of JSON per line of the text.
            progress: True to show a progress bar on a terminal.
        """
        if input is not None and data is not None:
            raise UserError("input= and data= are both set.", "Set only one of them: a text file, or a data-bin.")
        if streams is not None and context_window:
            raise UserError(
                "streams= and context_window= are both set.",
                "Set only one of them: with streams=, the recurrent state replaces the context window.",
            )
        task = self.task
        with contextlib.ExitStack() as stack:
            split = stack.enter_context(other_data(task, data=data, split=split, input=input))
            source = task.open()
            blocks = ContextBlocks(
                source.split(split, source.source_lang),
                break_mode=break_mode or task.config.break_mode,
                tokens_per_sample=tokens_per_sample or task.config.tokens_per_sample,
                context_window=context_window,
            )
            if blocks.without_context.break_mode == "none" and not context_window:
                streams = streams or self.config.get("batch", {}).get("streams")
            elif streams is not None:
                raise UserError("streams= requires contiguous samples.", "Set break_mode=none.")
            size = source.text_count(split) if text is None else _count(text)
            # Opened before scoring, so that an error in writing the file is reported at once.
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
            raise UserError("There are no tokens to score.", "The text is empty, or break_mode skips all of it.")
        return CorpusScores(
            nll=scores.nll,
            lines=len(blocks.items),
            tokens=blocks.items.total,
            scored_tokens=scores.tokens,
            unknown_tokens=scores.unknown,
            samples=len(blocks),
            text=size,
        )

    def sentence(self, line: str) -> Sentence:
        """Converts a prompt to an input of `decode`."""
        ids = self.task.vocabulary.encode(self.task.tokenizer.encode(line))
        return Sentence(ids, prefix=ids[:-1], source_text=line, prefix_text=line)


@dataclass(frozen=True)
class CorpusScores:
    """The log-likelihood of a text under a language model, and the size of the text."""

    nll: float
    """Σ -log p over the scored tokens, in nats."""
    lines: int
    tokens: int
    scored_tokens: int
    unknown_tokens: int
    samples: int
    text: TextCount | None
    """The size of the original text, or None if it is unknown."""

    @property
    def metrics(self) -> dict[str, Score]:
        """All available metrics. Metrics per word or byte are available only if the whole text was scored."""
        text = self.text if self.scored_tokens == self.tokens else None
        evaluation = Evaluation({"nll": (self.nll, float(self.scored_tokens))}, text=text)
        return metrics.compute(LanguageModelingTask.metrics, evaluation)


def _count(text: str) -> TextCount:
    blocks = read_blocks((find_text(text, None, key="text"),))
    return sum((count_text(lines) for (lines,) in blocks), start=TextCount())
