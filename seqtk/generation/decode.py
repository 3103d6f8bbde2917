"""From sentences in any number to their translations, in the order they came in.

B batch, P length of the prefix.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch, collate_pairs, pad_rows, prompts
from seqtk.data.plan import BatchingConfig, ordered_batches
from seqtk.data.vocabulary import EOS
from seqtk.generation.config import SearchConfig
from seqtk.generation.length_limits import longest_source, longest_target
from seqtk.generation.scoring import score
from seqtk.generation.search import HasNeverGenerated, Hypothesis, search
from seqtk.models.base import Model

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sentence:
    """What is to be translated, as ids that end in EOS, and what is known about its translation."""

    source: Ids
    target: Ids | None = None
    """The reference, ending in EOS."""
    prefix: Ids | None = None
    """What the translation has to begin with."""
    source_text: str | None = None
    """The line as it was given, where there was one."""
    target_text: str | None = None
    index: int = 0
    """Its number in the input; `in_order` counts. What is drawn at random hangs on it."""

    @property
    def is_blank(self) -> bool:
        """Whether this is a line of text without a token, which no model was taught to translate."""
        return self.source_text is not None and len(self.source) == 1


@dataclass(frozen=True)
class Translation:
    """One sentence with its hypotheses, best first."""

    index: int
    """The number of the sentence in the input, from 0."""
    sentence: Sentence
    hypotheses: list[Hypothesis]
    shortened: bool
    """Whether the sentence was longer than the model can read and lost its end."""


Decode = Callable[[Sequence[Sentence]], list[list[Hypothesis]]]
Map = Callable[[Decode, Iterable[Sequence[Sentence]]], Iterable[list[list[Hypothesis]]]]


@dataclass(frozen=True)
class Decoder:
    """Translates one batch of sentences, or scores the targets they have; can be sent to another process."""

    models: tuple[Model, ...]
    vocabulary: HasNeverGenerated
    search: SearchConfig = SearchConfig()
    score_targets: bool = False
    device: torch.device = torch.device("cpu")
    bf16: bool = False
    """Whether products run in bfloat16; the scores are float32 in any case."""

    def __call__(self, sentences: Sequence[Sentence]) -> list[list[Hypothesis]]:
        batch = self.collate(sentences).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            if self.score_targets:
                assert isinstance(batch, TranslationBatch)
                return [[hypothesis] for hypothesis in score(self.models, batch)]
            return search(
                self.models, batch, self.search, vocabulary=self.vocabulary, prefix_BP=self._prefixes(sentences)
            )

    def collate(self, sentences: Sequence[Sentence]) -> TranslationBatch | LanguageBatch:
        """What the models start from."""
        none = np.array([EOS])
        return collate_pairs(
            [(each.index, each.source, none if each.target is None else each.target) for each in sentences]
        )

    def leaves_blank(self, sentence: Sentence) -> bool:
        """Whether nothing is the answer to this sentence."""
        return sentence.is_blank and not self.score_targets

    def fit(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        """The sentences themselves or, where the models cannot read so much, copies with the end cut off."""
        source = longest_source(self.models)
        target = longest_target(self.models) if self.score_targets else None
        return [_cut(sentence, source=source, target=target) for sentence in sentences]

    def _prefixes(self, sentences: Sequence[Sentence]) -> Tensor | None:
        nothing = np.empty(0, dtype=np.int64)
        rows = [nothing if sentence.prefix is None else sentence.prefix for sentence in sentences]
        return pad_rows(rows).to(self.device) if any(len(row) for row in rows) else None


@dataclass(frozen=True)
class LanguageDecoder(Decoder):
    """Continues texts: a sentence's `prefix` is the prompt, of any length, also none."""

    def collate(self, sentences: Sequence[Sentence]) -> LanguageBatch:
        nothing_B0 = torch.empty(len(sentences), 0, dtype=torch.long)
        return dataclasses.replace(prompts(nothing_B0), ids_B=torch.tensor([each.index for each in sentences]))

    def leaves_blank(self, sentence: Sentence) -> bool:
        return False

    def fit(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        return list(sentences)


def in_order(
    sentences: Iterable[Sentence],
    decoder: Decoder,
    *,
    batching: BatchingConfig,
    window: int = 8192,
    first: int = 0,
    map_batches: Map = map,
) -> Iterator[Translation]:
    """One translation for each sentence, in their order, whatever the batches.

    So many sentences as `window` says are read, sorted by length into batches, and decoded before the first of them is
    given; no more are held. They are counted from `first` on. `map_batches` applies the decoder to the batches, `map`
    or one that has worker processes.
    A blank line is translated by a blank line.
    """
    numbered = (dataclasses.replace(sentence, index=index) for index, sentence in enumerate(sentences, first))
    while block := list(itertools.islice(numbered, window)):
        fitting = decoder.fit(block)
        hypotheses = {
            place: [Hypothesis(tokens=(EOS,), score=0.0, token_scores=(0.0,))]
            for place, sentence in enumerate(fitting)
            if decoder.leaves_blank(sentence)
        }
        places_N = np.array([place for place in range(len(fitting)) if place not in hypotheses], dtype=np.int64)
        sizes_N = np.array([len(fitting[place].source) for place in places_N], dtype=np.int64)
        batches = [places_N[batch] for batch in ordered_batches(sizes_N, batching)]
        found = map_batches(decoder, [[fitting[place] for place in batch] for batch in batches])
        for batch, results in zip(batches, found, strict=True):
            hypotheses |= zip(batch.tolist(), results, strict=True)
        for place, sentence in enumerate(block):
            yield Translation(sentence.index, sentence, hypotheses[place], shortened=fitting[place] is not sentence)


def _cut(sentence: Sentence, *, source: int | None, target: int | None) -> Sentence:
    changes: dict[str, Any] = {}
    if source is not None and len(sentence.source) > source:
        changes["source"] = np.append(sentence.source[: source - 1], EOS)
    if target is not None and sentence.target is not None and len(sentence.target) > target:
        changes["target"] = np.append(sentence.target[: target - 1], EOS)
    return dataclasses.replace(sentence, **changes) if changes else sentence
