"""The pipeline of translation models."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from seqtk.generation.decode import Sentence
from seqtk.pipelines.base import TextPipeline, as_lines
from seqtk.tasks.other_data import open_data
from seqtk.tasks.translation import TranslationTask


class TranslationPipeline(TextPipeline):
    """A translation model, or an ensemble of translation models."""

    task: TranslationTask

    def translate(
        self, sentences: Iterable[str], *, prefixes: Iterable[str] | None = None, **settings: Any
    ) -> list[str]:
        """Translates sentences.

        Args:
            sentences: Source texts of one line each.
            prefixes: One text for each sentence, with which its translation must begin.
            **settings: Fields of `SearchConfig`: `beam=5`, `length_penalty=0.6`, `sampling=True`, …

        Returns:
            One translation for each sentence. With `nbest=n`, n consecutive translations for each sentence, best first.
        """
        lines = as_lines(sentences, "sentences")
        given = [None] * len(lines) if prefixes is None else as_lines(prefixes, "prefixes", count=len(lines))
        inputs = (self.sentence(line, prefix=prefix) for line, prefix in zip(lines, given, strict=True))
        return list(self._outputs(inputs, self.search_config(**settings)))

    def score(self, sources: Iterable[str], targets: Iterable[str]) -> list[float]:  # type: ignore[override]
        """Returns the mean log-probability per token of each target given its source, including EOS, in nats."""
        lines = as_lines(sources, "sources")
        pairs = zip(lines, as_lines(targets, "targets", count=len(lines)), strict=True)
        return self._scores(self.sentence(line, references=(target,)) for line, target in pairs)

    def sentence(
        self, line: str, *, references: Sequence[str] = (), prefix: str | None = None, prefix_size: int = 0
    ) -> Sentence:
        """Converts a line of text to an input of `decode`.

        Args:
            line: The source text.
            references: The reference translations of the source.
            prefix: The text that the translation must begin with.
            prefix_size: The translation must begin with this many tokens of the first reference.
        """
        task, target, prefix_ids = self.task, None, None
        if references:
            target = task.target_vocabulary.encode(task.target_tokenizer.encode(references[0]))
            prefix_ids = target[:prefix_size]
        if prefix is not None:
            prefix_ids = task.target_vocabulary.encode(task.target_tokenizer.encode(prefix), eos=False)
        return Sentence(
            task.source_vocabulary.encode(task.source_tokenizer.encode(line)),
            target=target,
            prefix=prefix_ids,
            source_text=line,
            references=tuple(references),
            prefix_text=prefix,
        )

    def split(self, split: str = "test", *, data: str | None = None, prefix_size: int = 0) -> Iterator[Sentence]:
        """Yields the sentences of a split of the data-bin `data`. None: the data-bin of the training data."""
        task = self.task
        open_data(task, data)
        dataset = task.dataset(split)
        for index, source, target in map(dataset.__getitem__, range(len(dataset))):
            yield Sentence(
                source,
                target=target,
                prefix=target[:prefix_size],
                source_text=dataset.source_lines[index] if dataset.source_lines else None,
                references=(dataset.target_lines[index],) if dataset.target_lines else (),
            )
