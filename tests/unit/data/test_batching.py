"""Batching: budgets, what is left out, what may be asked."""

import numpy as np
import pytest

from seqtk.data.batching import BatchingConfig, epoch_batches, ordered_batches, pack, usable
from seqtk.utils.errors import UserError

SIZES_N2 = np.random.RandomState(0).randint(2, 40, size=(500, 2)).astype(np.int32)


def lists(batches: list[np.ndarray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def test_pack_charges_examples_times_the_longest() -> None:
    sizes = np.array([3, 4, 4, 5, 1])
    assert lists(pack(np.arange(5), sizes, max_tokens=12)) == [[0, 1, 2], [3, 4]]
    assert lists(pack(np.arange(5), sizes, max_tokens=12, max_sentences=2)) == [[0, 1], [2, 3], [4]]
    assert lists(pack(np.arange(5), sizes, max_tokens=None, max_sentences=4)) == [[0, 1, 2, 3], [4]]


def test_pack_of_nothing_is_no_batch() -> None:
    assert pack(np.arange(0), np.arange(0), max_tokens=10) == []


def test_pack_gives_an_example_over_the_budget_its_own_batch() -> None:
    assert lists(pack(np.arange(4), np.array([2, 50, 2, 2]), max_tokens=10)) == [[0], [1], [2, 3]]
    assert lists(pack(np.arange(4), np.array([2, 2, 2, 50]), max_tokens=10, multiple=2)) == [[0, 1], [2], [3]]


def test_size_multiple_holds_where_possible_and_drops_nothing() -> None:
    batches = pack(np.arange(13), np.full(13, 5), max_tokens=None, max_sentences=8, multiple=8)
    assert [len(batch) for batch in batches] == [8, 5]
    assert [len(batch) for batch in pack(np.arange(20), np.full(20, 5), max_tokens=50, multiple=4)] == [8, 8, 4]


def test_examples_without_tokens_cost_one() -> None:
    assert [len(batch) for batch in pack(np.arange(9), np.zeros(9, dtype=np.int32), max_tokens=4)] == [4, 4, 1]


def test_usable_names_the_too_long_by_index() -> None:
    sizes = np.array([[3, 3], [9, 2], [2, 9], [4, 4], [30, 1]])
    kept, too_long = usable(sizes, BatchingConfig(max_tokens=20, max_length=8))
    assert (kept.tolist(), too_long.tolist()) == ([0, 3], [1, 2, 4])
    kept, too_long = usable(sizes, BatchingConfig(max_tokens=20))
    assert (kept.tolist(), too_long.tolist()) == ([0, 1, 2, 3], [4])
    kept, too_long = usable(sizes, BatchingConfig(max_tokens=None, max_sentences=2))
    assert (kept.tolist(), too_long.tolist()) == ([0, 1, 2, 3, 4], [])


def test_epochs_have_new_batches_not_only_a_new_order() -> None:
    config = BatchingConfig(max_tokens=400, bucket=5)
    first, second = ({frozenset(b) for b in lists(epoch_batches(SIZES_N2, config, seed=1, epoch=e))} for e in (1, 2))
    assert len(first & second) < len(first) / 10


def test_epoch_batches_hold_like_lengths_in_mixed_order() -> None:
    batches = epoch_batches(SIZES_N2, BatchingConfig(max_tokens=400), seed=1, epoch=1)
    longest = [SIZES_N2[batch, 1].max() for batch in batches]
    padded = sum(len(batch) * length for batch, length in zip(batches, longest, strict=True))
    assert SIZES_N2[:, 1].sum() / padded > 0.95
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_a_larger_bucket_pads_less() -> None:
    def padded(bucket: int) -> int:
        batches = epoch_batches(SIZES_N2, BatchingConfig(max_tokens=400, bucket=bucket), seed=3, epoch=1)
        return sum(len(batch) * int(SIZES_N2[batch].max(axis=0).sum()) for batch in batches)

    assert padded(30) < padded(4) < padded(1)


def test_the_random_stream_is_fixed() -> None:
    """A run that is resumed, under whatever versions, continues the epoch it was in."""
    batches = epoch_batches(np.arange(2, 12), BatchingConfig(max_tokens=30, bucket=2), seed=7, epoch=3)
    assert lists(batches) == [[0, 1, 2, 3, 4], [9, 6], [5, 7, 8]]


def test_one_side_may_come_as_a_vector() -> None:
    config = BatchingConfig(max_tokens=100)
    vector, column = SIZES_N2[:, 0], SIZES_N2[:, :1]
    assert lists(ordered_batches(vector, config)) == lists(ordered_batches(column, config))
    made = [lists(epoch_batches(sizes, config, seed=0, epoch=0)) for sizes in (vector, column)]
    assert made[0] == made[1]


def test_ordered_batches_come_longest_first_and_keep_even_what_is_over_the_budget() -> None:
    sizes = np.array([3, 80, 5, 4, 5])
    assert lists(ordered_batches(sizes, BatchingConfig(max_tokens=10, max_length=4))) == [[1], [2, 4], [3, 0]]
    assert lists(ordered_batches(sizes, BatchingConfig(max_tokens=None, max_sentences=3))) == [[1, 2, 4], [3, 0]]


def test_nothing_in_nothing_out() -> None:
    empty = np.empty((0, 2), dtype=np.int32)
    assert epoch_batches(empty, BatchingConfig(), seed=1, epoch=1) == []
    assert ordered_batches(empty, BatchingConfig()) == []


def test_a_corpus_that_is_too_long_altogether_is_an_error_that_names_the_limits() -> None:
    with pytest.raises(
        UserError, match=r"None of 2 training examples fits batch\.max_tokens=5\.\n.*shortest has length 8"
    ):
        epoch_batches(np.array([[8, 3], [2, 9]]), BatchingConfig(max_tokens=5), seed=1, epoch=1)


@pytest.mark.parametrize("field", ["max_tokens", "max_sentences", "size_multiple", "max_length", "bucket"])
def test_a_limit_below_one_is_an_error_that_names_it(field: str) -> None:
    for make in (lambda config: ordered_batches(SIZES_N2, config), lambda config: usable(SIZES_N2, config)):
        with pytest.raises(UserError, match=f"{field}=0"):
            make(BatchingConfig(**{field: 0}))


def test_some_limit_is_needed() -> None:
    with pytest.raises(UserError, match="max_tokens and max_sentences"):
        ordered_batches(SIZES_N2, BatchingConfig(max_tokens=None))
