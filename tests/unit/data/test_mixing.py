"""Mixes of corpora: the number of examples of each corpus in an epoch, and their order."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seqtk.data.mixing import MixedExamples, examples_per_epoch
from seqtk.data.plan import BatchingConfig, Position, epoch_plan

BATCHING = BatchingConfig(max_tokens=40, bucket=2)


class Numbers:
    """A corpus whose examples are `(index, name, pass over the corpus)`."""

    truncated = 0

    def __init__(self, name: str, size: int, turn: int = 1) -> None:
        self.name, self.turn = name, turn
        self.sizes_ND = np.arange(1, size + 1, dtype=np.int32)[:, None] % 7 + 1

    def __len__(self) -> int:
        return len(self.sizes_ND)

    def __getitem__(self, index: int) -> tuple[int, str, int]:
        return index, self.name, self.turn

    def for_epoch(self, epoch: int) -> "Numbers":
        return Numbers(self.name, len(self), epoch)


def mixed(epoch: int, *, weights: tuple[float, ...] = (2, 0.3), seed: int = 1, **settings: Any) -> MixedExamples:
    corpora = [Numbers("a", 10), Numbers("b", 70)]
    return MixedExamples(corpora, ["a", "b"], weights=weights, seed=seed, epoch=epoch, **settings)


class TestShares:
    def test_weight_is_the_number_of_passes_per_epoch(self) -> None:
        assert examples_per_epoch([10, 70], [2, 0.3]) == [20, 21]

    def test_temperature_makes_shares_more_equal(self) -> None:
        sizes = [1_000, 100_000]
        for temperature, ratio in ((1, 100), (2, 10), (5, 100**0.2), (1e9, 1)):
            few, many = examples_per_epoch(sizes, [1, 1], temperature=temperature)
            assert many / few == pytest.approx(ratio, rel=0.01)
            assert few + many == pytest.approx(sum(sizes), abs=1)

    def test_every_corpus_has_at_least_one_example(self) -> None:
        assert min(examples_per_epoch([1, 10**6], [0.001, 1])) == 1


class TestOrder:
    @pytest.mark.parametrize("weights", [(2, 0.3), (0.45, 1), (3.7, 0.01), (1, 1)])
    def test_no_example_repeats_before_all_were_read(self, weights: tuple[float, float]) -> None:
        seen: Counter[int] = Counter()
        for epoch in range(1, 40):
            now = mixed(epoch, weights=weights)
            seen.update(now[index][0] for index in range(len(now)))
            for first, last in ((0, 10), (10, 80)):
                counts = [seen[number] for number in range(first, last)]
                assert max(counts) - min(counts) <= 1

    def test_all_epochs_have_the_same_length(self) -> None:
        assert [len(mixed(epoch)) for epoch in (1, 2, 3, 50)] == [41] * 4

    def test_order_depends_on_seed_and_epoch(self) -> None:
        def numbers(**changes: int) -> list[int]:
            now = mixed(**{"epoch": 2, **changes})
            return [now[index][0] for index in range(len(now))]

        assert numbers() == numbers()
        assert len({tuple(numbers(epoch=epoch, seed=seed)) for epoch in (1, 2) for seed in (1, 2)}) == 4

    def test_each_corpus_is_shuffled_differently(self) -> None:
        now = MixedExamples([Numbers("a", 50)] * 2, ["a", "b"], weights=[0.5, 0.5], seed=1, epoch=1)
        assert [now[index][0] for index in range(25)] != [now[index][0] - 50 for index in range(25, 50)]

    def test_each_pass_reads_a_new_version_of_the_corpus(self) -> None:
        assert {mixed(3)[index][2] for index in range(20)} == {5, 6}

    def test_sizes_match_the_examples(self) -> None:
        now = mixed(2)
        expected = [Numbers("", 70).sizes_ND[now[index][0] - 10 * (now[index][1] == "b"), 0] for index in range(41)]
        assert now.sizes_ND[:, 0].tolist() == expected


@pytest.mark.parametrize("max_length", [None, 4])
def test_read_counts_are_exact_within_and_after_an_epoch(max_length: int | None) -> None:
    """Examples longer than max_length are skipped and not counted."""
    batching = replace(BATCHING, max_length=max_length)
    read: Counter[str] = Counter()
    for epoch in (1, 2, 3):
        now = mixed(epoch)
        for update in epoch_plan(now.sizes_ND, batching, seed=1, position=Position(epoch)):
            for indices in update.indices:
                assert indices is not None
                read.update(now[index][1] for index in indices.tolist())
            assert now.examples_read(batching, update.position_after) == {"a": read["a"], "b": read["b"]}
        assert now.examples_read(batching, Position(epoch + 1)) == {"a": read["a"], "b": read["b"]}


def test_corpora_with_equal_names_are_numbered() -> None:
    now = MixedExamples(
        [Numbers("a", 3), Numbers("a", 4), Numbers("b", 5)], ["a", "a", "b"], weights=[1] * 3, seed=1, epoch=1
    )
    assert now.examples_read(BATCHING, Position(2)) == {"a (1)": 3, "a (2)": 4, "b": 5}
    assert len({line.split(" of ")[1] for line in now.lines()}) == 3
