"""Decodes sentences or prompts in batches, and returns the results in input order.

B batch, P length of the prefix.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.multiprocessing
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch, collate_pairs, pad_rows
from seqtk.data.blocks import collate_blocks, prompts
from seqtk.data.plan import BatchingConfig, ordered_batches
from seqtk.data.vocabulary import EOS
from seqtk.generation.config import SearchConfig
from seqtk.generation.length_limits import longest_source, longest_target
from seqtk.generation.scoring import score
from seqtk.generation.search import BannedTokens, Hypothesis, search
from seqtk.models.base import Model
from seqtk.utils.memory import keep_freed_memory

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sentence:
    """One input: a source sentence or a prompt as token ids, optionally with references and a forced prefix."""

    source: Ids
    """Token ids, ending in EOS."""
    target: Ids | None = None
    """The first reference, ending in EOS."""
    prefix: Ids | None = None
    """Tokens that the output must begin with."""
    source_text: str | None = None
    """The input line; None for ids from a data-bin without text."""
    references: tuple[str, ...] = ()
    """The texts of the references, if there are any."""
    prefix_text: str | None = None
    """The input text of the prefix. The output repeats it, even if the model does not know its tokens."""
    index: int = 0
    """The position in the input; `decode_in_order` sets it. Sampling derives its random numbers from it."""

    @property
    def is_blank(self) -> bool:
        """True for an empty line. Models are not trained to translate those."""
        return self.source_text is not None and len(self.source) == 1


@dataclass(frozen=True)
class Translation:
    """One sentence or prompt with its hypotheses, best first."""

    index: int
    """The position of the sentence in the input, from 0."""
    sentence: Sentence
    hypotheses: list[Hypothesis]
    truncated: bool = False
    """True if the source, or a target to score, was longer than the model's limit and was truncated."""
    prefix_truncated: bool = False
    """True if the prefix was longer than the maximum output and was truncated."""


Decode = Callable[[Sequence[Sentence]], list[list[Hypothesis]]]
Map = Callable[[Decode, Iterable[Sequence[Sentence]]], Iterable[list[list[Hypothesis]]]]


@dataclass(frozen=True)
class BatchTranslator:
    """Translates one batch of sentences, or scores their targets. It can be pickled for another process."""

    models: tuple[Model, ...]
    vocabulary: BannedTokens
    search: SearchConfig = SearchConfig()
    score_targets: bool = False
    device: torch.device = torch.device("cpu")
    bf16: bool = False
    """Whether matrix products are in bfloat16. Scores are always float32."""

    def __call__(self, sentences: Sequence[Sentence]) -> list[list[Hypothesis]]:
        batch = self.collate(sentences).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            if self.score_targets:
                return [[hypothesis] for hypothesis in score(self.models, batch)]
            return search(
                self.models, batch, self.search, vocabulary=self.vocabulary, prefix_BP=self._prefixes(sentences)
            )

    def collate(self, sentences: Sequence[Sentence]) -> TranslationBatch | LanguageBatch:
        """Returns the batch that the models start from."""
        return collate_pairs([(each.index, each.source, _target(each)) for each in sentences])

    def skips_empty(self, sentence: Sentence) -> bool:
        """Returns True if this sentence needs no search, because its output is empty."""
        return sentence.is_blank and not self.score_targets

    def truncate(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        """Returns the sentences, with those that exceed the limits of the models replaced by truncated copies."""
        source, target = longest_source(self.models), longest_target(self.models)
        return [self._truncate(sentence, source=source, target=target) for sentence in sentences]

    def _truncate(self, sentence: Sentence, *, source: int | None, target: int | None) -> Sentence:
        changes: dict[str, Any] = {}
        if source is not None and len(sentence.source) > source:
            changes["source"] = np.append(sentence.source[: source - 1], EOS)
        if self.score_targets:
            if target is not None and sentence.target is not None and len(sentence.target) > target:
                changes["target"] = np.append(sentence.target[: target - 1], EOS)
        elif sentence.prefix is not None:
            length = len(changes.get("source", sentence.source))
            limit = int(length * self.search.max_length_a + self.search.max_length_b)
            limit = limit if target is None else min(limit, target - 1)
            if len(sentence.prefix) > limit:
                changes["prefix"] = sentence.prefix[:limit]
        return dataclasses.replace(sentence, **changes) if changes else sentence

    def _prefixes(self, sentences: Sequence[Sentence]) -> Tensor | None:
        nothing = np.empty(0, dtype=np.int64)
        rows = [nothing if sentence.prefix is None else sentence.prefix for sentence in sentences]
        return pad_rows(rows).to(self.device) if any(len(row) for row in rows) else None


@dataclass(frozen=True)
class BatchGenerator(BatchTranslator):
    """Continues one batch of prompts. The prompts are the `prefix` of each sentence and may have any length."""

    def collate(self, sentences: Sequence[Sentence]) -> LanguageBatch:
        if self.score_targets:
            return collate_blocks([(each.index, np.insert(_target(each), 0, EOS)) for each in sentences])
        nothing_B0 = torch.empty(len(sentences), 0, dtype=torch.long)
        return dataclasses.replace(prompts(nothing_B0), ids_B=torch.tensor([each.index for each in sentences]))

    def skips_empty(self, sentence: Sentence) -> bool:
        return False

    def truncate(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        return super().truncate(sentences) if self.score_targets else list(sentences)


def _target(sentence: Sentence) -> Ids:
    return np.array([EOS]) if sentence.target is None else sentence.target


def decode_in_order(
    sentences: Iterable[Sentence],
    decoder: BatchTranslator,
    *,
    batching: BatchingConfig,
    window: int = 8192,
    first: int = 0,
    map_batches: Map = map,
) -> Iterator[Translation]:
    """Yields one translation for each sentence, in input order.

    Args:
        sentences: The input, read lazily.
        decoder: Decodes one batch.
        batching: The size of a batch. Sentences of a window are sorted by length into batches.
        window: How many sentences are read and decoded at a time. No more are in memory.
        first: The index of the first sentence.
        map_batches: Applies the decoder to the batches: `map`, or one with worker processes (see `decoding_map`).
    """
    numbered = (dataclasses.replace(sentence, index=index) for index, sentence in enumerate(sentences, first))
    while block := list(itertools.islice(numbered, window)):
        fitting = decoder.truncate(block)
        hypotheses = {
            place: [Hypothesis(tokens=(EOS,), score=0.0, token_scores=(0.0,))]
            for place, sentence in enumerate(fitting)
            if decoder.skips_empty(sentence)
        }
        places_N = np.array([place for place in range(len(fitting)) if place not in hypotheses], dtype=np.int64)
        sizes_N = np.array([len(fitting[place].source) for place in places_N], dtype=np.int64)
        batches = [places_N[batch] for batch in ordered_batches(sizes_N, batching)]
        found = map_batches(decoder, [[fitting[place] for place in batch] for batch in batches])
        for batch, results in zip(batches, found, strict=True):
            hypotheses |= zip(batch.tolist(), results, strict=True)
        for place, (sentence, fit) in enumerate(zip(block, fitting, strict=True)):
            prefix_truncated = fit.prefix is not sentence.prefix
            yield Translation(
                sentence.index,
                dataclasses.replace(sentence, prefix_text=None) if prefix_truncated else sentence,
                hypotheses[place],
                truncated=fit.source is not sentence.source or fit.target is not sentence.target,
                prefix_truncated=prefix_truncated,
            )


@contextlib.contextmanager
def decoding_map(decoder: BatchTranslator, *, workers: int) -> Iterator[Map]:
    """Returns a `map` over batches of sentences, in `workers` processes of one thread each, or in this process if 0.

    The matrix products of a decoding step are too small for several threads: two processes with one thread each decode
    faster than one process with two.
    """
    if workers == 0:
        keep_freed_memory()
        yield map
        return
    # "spawn", because a fork of a process with torch threads can wait forever for one of their locks.
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start_worker, initargs=(decoder,)) as pool:

        def pool_map(_: Decode, batches: Iterable[Sequence[Sentence]]) -> Iterable[list[list[Hypothesis]]]:
            return pool.imap(_decode_in_worker, batches)

        yield pool_map


_worker_decoder: BatchTranslator | None = None


def _start_worker(decoder: BatchTranslator) -> None:
    global _worker_decoder
    keep_freed_memory()
    torch.set_num_threads(1)
    _worker_decoder = decoder


def _decode_in_worker(batch: Sequence[Sentence]) -> list[list[Hypothesis]]:
    assert _worker_decoder is not None
    return _worker_decoder(batch)
