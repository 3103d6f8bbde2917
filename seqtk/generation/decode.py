"""Decodes sentences or prompts in batches, and returns the results in input order.

B batch, P length of the prefix.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
from seqtk.data.vocabulary import EOS, Vocabulary
from seqtk.data.workers import call_function, set_function
from seqtk.generation.config import SearchConfig
from seqtk.generation.length_limits import length_limit
from seqtk.generation.scoring import score
from seqtk.generation.search import Hypothesis, search
from seqtk.models.base import Model
from seqtk.utils.errors import UserError
from seqtk.utils.memory import keep_freed_memory

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sentence:
    """An input: a source sentence or a prompt as token ids, optionally with references and a forced prefix."""

    source: Ids
    """Token ids, ending in EOS."""
    target: Ids | None = None
    """The first reference, ending in EOS."""
    prefix: Ids | None = None
    """Tokens that the output must begin with."""
    source_text: str | None = None
    """The input line, or None if the ids come from a data-bin without text."""
    references: tuple[str, ...] = ()
    """The texts of the references, if there are any."""
    prefix_text: str | None = None
    """The input text of the prefix. The output begins with it, even if some of its tokens are unknown."""
    index: int = 0
    """The index in the input, from 0, set by `decode_in_order`. Random numbers of sampling depend on it."""

    @property
    def is_blank(self) -> bool:
        """True for an empty line, which models are not trained to translate."""
        return self.source_text is not None and len(self.source) == 1


@dataclass(frozen=True)
class Translation:
    """A sentence or prompt with its hypotheses, best first."""

    sentence: Sentence
    hypotheses: list[Hypothesis]
    truncated: bool = False
    """True if the source, or the target to score, was truncated to the model's maximum length."""
    prefix_truncated: bool = False
    """True if the prefix was truncated to the maximum length of the output."""


Decode = Callable[[Sequence[Sentence]], list[list[Hypothesis]]]
Map = Callable[[Decode, Iterable[Sequence[Sentence]]], Iterable[list[list[Hypothesis]]]]


@dataclass(frozen=True)
class BatchTranslator:
    """Translates a batch of sentences, or scores their targets. Worker processes receive a pickled copy."""

    models: tuple[Model, ...]
    vocabulary: Vocabulary
    search: SearchConfig = SearchConfig()
    score_targets: bool = False
    device: torch.device = torch.device("cpu")
    bf16: bool = False
    """True to compute under bfloat16 autocast. Scores are always float32."""

    def __call__(self, sentences: Sequence[Sentence]) -> list[list[Hypothesis]]:
        batch = self.collate(sentences).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            if self.score_targets:
                return [[hypothesis] for hypothesis in score(self.models, batch)]
            return search(
                self.models, batch, self.search, vocabulary=self.vocabulary, prefix_BP=self._prefixes(sentences)
            )

    def collate(self, sentences: Sequence[Sentence]) -> TranslationBatch | LanguageBatch:
        """Collates sentences into the initial batch of a search."""
        return collate_pairs([(sentence.index, sentence.source, _target(sentence)) for sentence in sentences])

    def skips_empty(self, sentence: Sentence) -> bool:
        """Returns True if this sentence is empty, so that it is not decoded and its output is empty."""
        return sentence.is_blank and not self.score_targets

    def truncate(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        """Replaces sentences that exceed the maximum length of a model by truncated copies."""
        source, target = length_limit(self.models, "source"), length_limit(self.models, "target")
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
        empty = np.empty(0, dtype=np.int64)
        rows = [empty if sentence.prefix is None else sentence.prefix for sentence in sentences]
        return pad_rows(rows).to(self.device) if any(len(row) for row in rows) else None


@dataclass(frozen=True)
class BatchGenerator(BatchTranslator):
    """Continues a batch of prompts, which are the prefixes of the sentences. Prompts may have any length."""

    def collate(self, sentences: Sequence[Sentence]) -> LanguageBatch:
        if self.score_targets:
            return collate_blocks([(sentence.index, np.insert(_target(sentence), 0, EOS)) for sentence in sentences])
        empty_B0 = torch.empty(len(sentences), 0, dtype=torch.long)
        ids_B = torch.tensor([sentence.index for sentence in sentences])
        return dataclasses.replace(prompts(empty_B0), ids_B=ids_B)

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
        decoder: The object that decodes a batch.
        batching: The maximum size of a batch. The sentences of a window are batched by length.
        window: The number of sentences that are read, decoded and kept in memory at a time.
        first: The index of the first sentence.
        map_batches: The function that applies the decoder to all batches: `map`, or a function from `decoding_map`.
    """
    numbered = (dataclasses.replace(sentence, index=index) for index, sentence in enumerate(sentences, first))
    while block := list(itertools.islice(numbered, window)):
        truncated = decoder.truncate(block)
        hypotheses = {
            i: [Hypothesis(tokens=(EOS,), score=0.0, token_scores=(0.0,))]
            for i, sentence in enumerate(truncated)
            if decoder.skips_empty(sentence)
        }
        index_N = np.array([i for i in range(len(truncated)) if i not in hypotheses], dtype=np.int64)
        sizes_N = np.array([len(truncated[i].source) for i in index_N], dtype=np.int64)
        batches = [index_N[batch] for batch in ordered_batches(sizes_N[:, None], batching)]
        results = map_batches(decoder, [[truncated[i] for i in batch] for batch in batches])
        for batch, found in zip(batches, results, strict=True):
            hypotheses |= zip(batch.tolist(), found, strict=True)
        for i, (sentence, decoded) in enumerate(zip(block, truncated, strict=True)):
            prefix_truncated = decoded.prefix is not sentence.prefix
            yield Translation(
                dataclasses.replace(sentence, prefix_text=None) if prefix_truncated else sentence,
                hypotheses[i],
                truncated=decoded.source is not sentence.source or decoded.target is not sentence.target,
                prefix_truncated=prefix_truncated,
            )


@contextlib.contextmanager
def decoding_map(decoder: BatchTranslator, *, workers: int) -> Iterator[Map]:
    """Context manager that yields a function like `map`, which decodes in `workers` processes.

    With `workers=0`, it decodes in this process.

    Each process has one thread: the matrix products of a decoding step are so small that two processes with one thread
    each are faster than one process with two threads. Raises UserError if a process ends unexpectedly.
    """
    if workers == 0:
        keep_freed_memory()
        yield map
        return
    # "spawn", because a forked process may deadlock on locks that torch's threads hold.
    context = torch.multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(decoder,))
    try:
        yield lambda _, batches: pool.map(call_function, batches)
    except BrokenProcessPool:
        raise UserError(
            "A worker process ended unexpectedly, probably because memory ran out.",
            "Lower workers=, max_tokens= or max_sentences=.",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(decoder: BatchTranslator) -> None:
    set_function(decoder)
    keep_freed_memory()
    torch.set_num_threads(1)
