"""Several corpora as one training set: how much of each an epoch reads, and which part.

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
    """One of several corpora to train on."""

    data: str = setting("", help="Where the corpus is: of the default source, a data-bin directory.")
    weight: float = setting(
        1.0,
        above=0,
        at_most=1e6,
        help="How many times an epoch reads the corpus. Below 1 each epoch reads the part that follows.",
    )
    source_lang: str | None = setting(None, help="Its name of the language that is read. null: as in task.data.")
    target_lang: str | None = setting(None, help="Its name of the language that is written. null: likewise.")


@runtime_checkable
class ChangesByEpoch(Protocol):
    """A corpus whose examples differ from epoch to epoch, as masked text does."""

    def for_epoch(self, epoch: int) -> Dataset:
        """The same corpus as another epoch, counted from 1, reads it."""


def examples_per_epoch(sizes: Sequence[int], weights: Sequence[float], *, temperature: float = 1.0) -> list[int]:
    """Returns how many examples of each corpus an epoch reads, at least one.

    With temperature T, corpus k of n_k examples and weight w_k has a share proportional to (w_k n_k)^(1/T), as in
    Arivazhagan et al. 2019 (Massively Multilingual Neural Machine Translation in the Wild); an epoch has Σ w_k n_k
    examples. So T = 1 reads corpus k w_k times, and a large T reads the same number of examples of each.
    """
    wanted_K = np.array(sizes, dtype=np.float64) * np.array(weights)
    share_K = (wanted_K / wanted_K.max()) ** (1 / temperature)
    return [max(1, round(count)) for count in (wanted_K.sum() * share_K / share_K.sum()).tolist()]


@dataclass(frozen=True)
class _Part:
    """Examples of one pass through a corpus."""

    corpus: int
    examples: Dataset
    order: IndexArray


class MixedExamples:
    """The examples of one epoch of a mix; the corpora are not copied, only numbered.

    An epoch reads `counts[k]` examples of corpus k, from where the epoch before it ended. Dataset k is read in passes:
    each is a permutation of its examples, drawn from (seed, corpus, pass), so no example is read again before all have
    been read. All of this is a function of the arguments. An example has the number that it has in all corpora one
    after the other.

    Args:
        corpora: The corpora, which have examples.
        names: What reports call them. Equal names are numbered.
        weights: How many times an epoch reads each.
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
        """How many examples of each corpus a run has read at `position`, of this epoch or at the end of it.

        Examples that are skipped, since they are too long for `config`, do not count.
        """
        now_K = np.zeros(len(self.names), dtype=np.int64)
        if position.examples:
            key = (config, position.earlier, tuple(shapes))
            if self._order is None or self._order[0] != key:  # planning a large epoch takes seconds
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
        """Returns how many examples of a corpus the epochs before `epoch` have read."""
        sizes_ND = self.corpora[number].sizes_ND
        passes, rest = divmod((epoch - 1) * self.counts[number], len(sizes_ND))
        kept, _ = usable(sizes_ND, config)
        if len(kept) == len(sizes_ND):
            return (epoch - 1) * self.counts[number]
        last = _order_of_pass(number, passes, size=len(sizes_ND), seed=self.seed)[:rest]
        return passes * len(kept) + int(np.isin(last, kept).sum())

    def lines(self) -> list[str]:
        """The counts as text, a line a corpus."""
        return [
            f"  {count:,} of {name} ({count / len(corpus):.3g} × {len(corpus):,})"
            for name, corpus, count in zip(self.names, self.corpora, self.counts, strict=True)
        ]


def lengths_of_run(examples: Dataset) -> npt.NDArray[np.int32]:
    """Returns the lengths that static shapes are made for, given the examples of the first epoch.

    Of a mix these are the lengths of all corpora too, so that what later epochs read fits in the same shapes.
    """
    corpora = examples.corpora if isinstance(examples, MixedExamples) else ()
    return np.concatenate([examples.sizes_ND, *(corpus.sizes_ND for corpus in corpora)])


def _parts(number: int, corpus: Dataset, *, count: int, seed: int, epoch: int) -> list[_Part]:
    """The passes through a corpus of which an epoch reads `count` examples, with the examples of each."""
    size, start = len(corpus), (epoch - 1) * count
    parts = []
    for turn in range(start // size, (start + count - 1) // size + 1):
        first, last = max(start - turn * size, 0), min(start + count - turn * size, size)
        order: IndexArray = np.arange(size)
        if last - first < size:  # a whole pass needs no order: the plan of the epoch shuffles it
            order = _order_of_pass(number, turn, size=size, seed=seed)[first:last]
        examples = corpus.for_epoch(turn + 1) if isinstance(corpus, ChangesByEpoch) else corpus
        parts.append(_Part(number, examples, order))
    return parts


def _order_of_pass(number: int, turn: int, *, size: int, seed: int) -> IndexArray:
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, turn, number + 1])))
    return random.permutation(size)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names; those that occur several times get the number of their corpus, from 1."""
    return tuple(f"{name} ({k})" if list(names).count(name) > 1 else name for k, name in enumerate(names, 1))
