"""Combines several corpora into one training set: selects the examples of each corpus for each epoch.

K corpora; N examples of an epoch; D sides of an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.data.batch import Dataset
from seqtk.data.plan import BatchingConfig, IndexArray, Position, reading_order, usable
from seqtk.data.static_shapes import Shape


@dataclass(frozen=True)
class CorpusConfig:
    """Settings of one of several training corpora."""

    data: str = setting("", help="Location of the corpus; for the default source, a data-bin folder.")
    weight: float = setting(
        1.0,
        above=0,
        at_most=1e6,
        help="Number of times that an epoch reads the corpus. Below 1: each epoch reads the next part of the corpus.",
    )
    source_lang: str | None = setting(None, help="Source language in this corpus. null: as in task.data.")
    target_lang: str | None = setting(None, help="Target language in this corpus. null: as in task.data.")


@runtime_checkable
class ChangesByEpoch(Protocol):
    """A corpus whose examples change from epoch to epoch, such as masked text."""

    def for_epoch(self, epoch: int) -> Dataset:
        """Returns the examples of this corpus in an epoch, counted from 1."""


def examples_per_epoch(sizes: Sequence[int], weights: Sequence[float], *, temperature: float = 1.0) -> list[int]:
    """Returns the number of examples of each corpus that an epoch reads, at least one.

    An epoch has Σ w_k n_k examples, where n_k is the size and w_k the weight of corpus k. With temperature T, the share
    of corpus k is proportional to (w_k n_k)^(1/T), as in Arivazhagan et al. 2019 (Massively Multilingual Neural Machine
    Translation in the Wild). With T = 1, corpus k is read w_k times. With a large T, all shares are nearly equal.
    """
    wanted_K = np.array(sizes, dtype=np.float64) * np.array(weights)
    share_K = (wanted_K / wanted_K.max()) ** (1 / temperature)
    return [max(1, round(count)) for count in (wanted_K.sum() * share_K / share_K.sum()).tolist()]


@dataclass(frozen=True)
class _Part:
    """A part of a pass through a corpus: the examples that an epoch reads, in reading order."""

    corpus: int
    examples: Dataset
    order: IndexArray


class MixedExamples:
    """The examples of one epoch of several corpora, without copies. They depend only on the arguments.

    Each corpus is read in passes. A pass is a random permutation of all its examples, a function of (seed, corpus,
    pass), so each example is read once before any is repeated. An epoch reads the next examples of each corpus, as many
    as `examples_per_epoch` returns. The index of an example is its index in the concatenation of all corpora.

    Args:
        corpora: The corpora. None of them is empty.
        names: The names of the corpora in reports. Equal names are numbered.
        weights: The number of times that an epoch reads each corpus.
        temperature: See `examples_per_epoch`.
        seed: The seed of the run.
        epoch: The epoch, from 1.
    """

    def __init__(
        self,
        corpora: Sequence[Dataset],
        names: Sequence[str],
        *,
        weights: Sequence[float],
        temperature: float = 1.0,
        seed: int,
        epoch: int,
    ) -> None:
        self.corpora, self.names, self.seed = tuple(corpora), _distinct(names), seed
        sizes = [len(corpus) for corpus in corpora]
        self.counts = examples_per_epoch(sizes, weights, temperature=temperature)
        self._offsets = np.cumsum([0, *sizes]).tolist()
        self._parts = [
            part
            for number, corpus in enumerate(corpora)
            for part in _parts(number, corpus, count=self.counts[number], seed=seed, epoch=epoch)
        ]
        self._ends = np.cumsum([len(part.order) for part in self._parts], dtype=np.int64)
        self.sizes_ND = np.concatenate([part.examples.sizes_ND[part.order] for part in self._parts])
        self._order: tuple[Any, npt.NDArray[np.int16]] | None = None
        self._before: tuple[Any, npt.NDArray[np.int64]] | None = None
        self.truncated = sum(corpus.truncated for corpus in corpora)

    def __len__(self) -> int:
        return len(self.sizes_ND)

    def __getitem__(self, index: int) -> Any:
        place = int(self._ends.searchsorted(index, side="right"))
        part = self._parts[place]
        number, *rest = part.examples[int(part.order[index - int(self._ends[place])])]
        return self._offsets[part.corpus] + number, *rest

    def examples_read(self, config: BatchingConfig, position: Position, shapes: Sequence[Shape] = ()) -> dict[str, int]:
        """Returns the number of examples of each corpus that a run has read from its start to `position`.

        `position` is in this epoch or at its end. Examples that are skipped because they are too long for `config` are
        not counted.
        """
        now_K = np.zeros(len(self.names), dtype=np.int64)
        if position.examples:
            key = (config, position.earlier, tuple(shapes))
            if self._order is None or self._order[0] != key:  # cached: the order of a large epoch takes seconds
                order_N = reading_order(self.sizes_ND, config, seed=self.seed, position=position, shapes=shapes)
                counts = [len(part.order) for part in self._parts]
                corpus_N = np.repeat(np.array([part.corpus for part in self._parts], dtype=np.int16), counts)
                self._order = key, corpus_N[order_N]
            now_K = np.bincount(self._order[1][: position.examples], minlength=len(self.names))
        settings = (config, position.epoch)
        if self._before is None or self._before[0] != settings:
            self._before = (
                settings,
                np.array([self._read_before(position.epoch, k, config) for k in range(len(self.names))]),
            )
        return dict(zip(self.names, (self._before[1] + now_K).tolist(), strict=True))

    def _read_before(self, epoch: int, number: int, config: BatchingConfig) -> int:
        """Returns the number of examples of a corpus that the epochs before `epoch` read."""
        sizes_ND = self.corpora[number].sizes_ND
        passes, rest = divmod((epoch - 1) * self.counts[number], len(sizes_ND))
        kept, _ = usable(sizes_ND, config)
        if len(kept) == len(sizes_ND):
            return (epoch - 1) * self.counts[number]
        last = _order_of_pass(number, passes, size=len(sizes_ND), seed=self.seed)[:rest]
        return passes * len(kept) + int(np.isin(last, kept).sum())

    def lines(self) -> list[str]:
        """Returns the number of examples per epoch as text, one line per corpus."""
        return [
            f"  {count:,} of {name} ({count / len(corpus):.3g} × {len(corpus):,})"
            for name, corpus, count in zip(self.names, self.corpora, self.counts, strict=True)
        ]


def lengths_of_run(examples: Dataset) -> npt.NDArray[np.int32]:
    """Returns the lengths of all examples of a run, for static shapes, given the examples of the first epoch.

    With several corpora, the result includes all examples of each corpus, so that all epochs have the same shapes.
    """
    corpora = examples.corpora if isinstance(examples, MixedExamples) else ()
    return np.concatenate([examples.sizes_ND, *(corpus.sizes_ND for corpus in corpora)])


def _parts(number: int, corpus: Dataset, *, count: int, seed: int, epoch: int) -> list[_Part]:
    """Returns the `count` examples of a corpus that an epoch reads, one part for each pass."""
    size, start = len(corpus), (epoch - 1) * count
    parts = []
    for turn in range(start // size, (start + count - 1) // size + 1):
        first, last = max(start - turn * size, 0), min(start + count - turn * size, size)
        order: IndexArray = np.arange(size)
        if last - first < size:  # a full pass needs no order, because the plan of the epoch shuffles it
            order = _order_of_pass(number, turn, size=size, seed=seed)[first:last]
        examples = corpus.for_epoch(turn + 1) if isinstance(corpus, ChangesByEpoch) else corpus
        parts.append(_Part(number, examples, order))
    return parts


def _order_of_pass(number: int, turn: int, *, size: int, seed: int) -> IndexArray:
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, turn, number + 1])))
    return random.permutation(size)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Returns `names`, with the number of the corpus (from 1) appended to names that occur more than once."""
    return tuple(f"{name} ({k})" if list(names).count(name) > 1 else name for k, name in enumerate(names, 1))
