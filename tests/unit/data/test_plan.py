"""The plan of an epoch: batch sizes, batches, streams, the updates of each rank, and resuming within an epoch."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.data.plan import (
    BatchingConfig,
    Position,
    Update,
    epoch_batches,
    epoch_plan,
    ordered_batches,
    pack,
    padding_share,
    updates,
    usable,
)
from seqtk.data.streams import stream_rows, stream_updates
from seqtk.utils.errors import UserError

BATCHES = [np.array(batch) for batch in ([4, 1], [0], [2, 3, 5], [6, 7], [8])]
SIZES_N2 = np.random.RandomState(0).randint(2, 40, size=(500, 2)).astype(np.int32)


def lists(batches: list[np.ndarray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def packed(order: np.ndarray, sizes: np.ndarray, **limits: int | None) -> list[list[int]]:
    return lists(pack(order, sizes, BatchingConfig(**limits)))  # type: ignore[arg-type]


class TestPack:
    def test_batch_size_is_rows_times_longest_example(self) -> None:
        sizes = np.array([3, 4, 4, 5, 1])
        assert packed(np.arange(5), sizes, max_tokens=12) == [[0, 1, 2], [3, 4]]
        assert packed(np.arange(5), sizes, max_tokens=12, max_sentences=2) == [[0, 1], [2, 3], [4]]
        assert packed(np.arange(5), sizes, max_tokens=None, max_sentences=4) == [[0, 1, 2, 3], [4]]

    def test_packing_no_examples_gives_no_batch(self) -> None:
        assert packed(np.arange(0), np.arange(0), max_tokens=10) == []

    def test_example_longer_than_max_tokens_is_a_separate_batch(self) -> None:
        assert packed(np.arange(4), np.array([2, 50, 2, 2]), max_tokens=10) == [[0], [1], [2, 3]]
        assert packed(np.arange(4), np.array([2, 2, 2, 50]), max_tokens=10, size_multiple=2) == [[0, 1], [2], [3]]

    def test_rounding_to_multiples_drops_no_example(self) -> None:
        batches = packed(np.arange(13), np.full(13, 5), max_tokens=None, max_sentences=8, size_multiple=8)
        assert [len(batch) for batch in batches] == [8, 5]
        batches = packed(np.arange(20), np.full(20, 5), max_tokens=50, size_multiple=4)
        assert [len(batch) for batch in batches] == [8, 8, 4]

    def test_empty_example_counts_as_one_token(self) -> None:
        assert [len(batch) for batch in packed(np.arange(9), np.zeros(9, dtype=np.int32), max_tokens=4)] == [4, 4, 1]


class TestBatches:
    def test_usable_skips_examples_that_are_too_long(self) -> None:
        sizes = np.array([[3, 3], [9, 2], [2, 9], [4, 4], [30, 1]])
        kept, too_long = usable(sizes, BatchingConfig(max_tokens=20, max_length=8))
        assert (kept.tolist(), too_long.tolist()) == ([0, 3], [1, 2, 4])
        kept, too_long = usable(sizes, BatchingConfig(max_tokens=20))
        assert (kept.tolist(), too_long.tolist()) == ([0, 1, 2, 3], [4])
        kept, too_long = usable(sizes, BatchingConfig(max_tokens=None, max_sentences=2))
        assert (kept.tolist(), too_long.tolist()) == ([0, 1, 2, 3, 4], [])

    def test_every_epoch_has_different_batches(self) -> None:
        config = BatchingConfig(max_tokens=400, bucket=5)
        first, second = (
            {frozenset(b) for b in lists(epoch_batches(SIZES_N2, config, seed=1, epoch=e))} for e in (1, 2)
        )
        assert len(first & second) < len(first) / 10

    def test_batches_have_similar_lengths_in_random_order(self) -> None:
        batches = epoch_batches(SIZES_N2, BatchingConfig(max_tokens=400), seed=1, epoch=1)
        longest = [SIZES_N2[batch, 1].max() for batch in batches]
        padded = sum(len(batch) * length for batch, length in zip(batches, longest, strict=True))
        assert SIZES_N2[:, 1].sum() / padded > 0.95
        assert longest != sorted(longest)
        assert longest != sorted(longest, reverse=True)

    def test_larger_bucket_gives_less_padding(self) -> None:
        def padded(bucket: int) -> int:
            batches = epoch_batches(SIZES_N2, BatchingConfig(max_tokens=400, bucket=bucket), seed=3, epoch=1)
            return sum(len(batch) * int(SIZES_N2[batch].max(axis=0).sum()) for batch in batches)

        assert padded(30) < padded(4) < padded(1)

    def test_batch_order_is_the_same_in_every_version(self) -> None:
        """An upgrade of seqtk or its libraries must not change the order, so that a run can resume within an epoch."""
        batches = epoch_batches(np.arange(2, 12)[:, None], BatchingConfig(max_tokens=30, bucket=2), seed=7, epoch=3)
        assert lists(batches) == [[0, 1, 2, 3, 4], [9, 6], [5, 7, 8]]

    def test_validation_reads_all_examples_longest_first(self) -> None:
        sizes = np.array([[3], [80], [5], [4], [5]])
        assert lists(ordered_batches(sizes, BatchingConfig(max_tokens=10, max_length=4))) == [[1], [2, 4], [3, 0]]
        assert lists(ordered_batches(sizes, BatchingConfig(max_tokens=None, max_sentences=3))) == [[1, 2, 4], [3, 0]]

    def test_epoch_without_examples_has_no_batches(self) -> None:
        empty = np.empty((0, 2), dtype=np.int32)
        assert epoch_batches(empty, BatchingConfig(), seed=1, epoch=1) == []
        assert ordered_batches(empty, BatchingConfig()) == []

        assert epoch_batches(np.array([[8, 3], [2, 9]]), BatchingConfig(max_tokens=5), seed=1, epoch=1) == []

    def test_batch_limit_is_required(self) -> None:
        with pytest.raises(UserError, match=r"batch\.max_tokens and batch\.max_sentences"):
            ordered_batches(SIZES_N2, BatchingConfig(max_tokens=None))


def plan(**arguments: int) -> list[tuple[list[list[int] | None], int]]:
    examples = arguments.pop("examples", 0)
    made = updates(BATCHES, position=Position(3, examples), **arguments)
    assert all(update.position_after.epoch == 3 for update in made)
    return [([i if i is None else i.tolist() for i in u.indices], u.position_after.examples) for u in made]


class TestRanks:
    def test_one_process_reads_every_batch(self) -> None:
        assert plan() == [([[4, 1]], 2), ([[0]], 3), ([[2, 3, 5]], 6), ([[6, 7]], 8), ([[8]], 9)]

    def test_micro_batches_are_assigned_round_robin(self) -> None:
        assert plan(world=2, rank=0, update_freq=2) == [([[4, 1], [2, 3, 5]], 8), ([[8], None], 9)]
        assert plan(world=2, rank=1, update_freq=2) == [([[0], [6, 7]], 8), ([None, None], 9)]

    def test_epoch_without_batches_has_no_updates(self) -> None:
        assert updates([], position=Position(1, 0), world=2, rank=1) == []
        assert padding_share([], SIZES_N2) == 0

    def test_update_has_the_position_after_it(self) -> None:
        assert Update((None,), Position(2, 7)).position_after == Position(epoch=2, examples=7)


class TestResume:
    def test_plan_resumes_at_a_batch_boundary(self) -> None:
        assert plan(update_freq=2, examples=3) == plan(update_freq=2)[1:]
        assert plan(examples=9) == []

    def test_plan_resumes_with_a_different_number_of_ranks(self) -> None:
        """Three examples are one update of two ranks, but not a full update of three batches."""
        assert plan(update_freq=3, examples=3) == [([[2, 3, 5], [6, 7], [8]], 9)]

    def test_plan_resumes_inside_a_batch(self) -> None:
        assert plan(examples=5) == [([[5]], 6), ([[6, 7]], 8), ([[8]], 9)]


def stream_plan(samples: int, streams: int, *, examples: int = 0, **share: int) -> list[list[list[int] | None]]:
    made = stream_updates(samples, streams, position=Position(2, examples), **share)
    return [[None if rows is None else rows.tolist() for rows in update.indices] for update in made]


class TestStreams:
    def test_streams_are_contiguous_with_longer_ones_first(self) -> None:
        assert [rows.tolist() for rows in stream_rows(8, 3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
        assert [rows.tolist() for rows in stream_rows(2, 3)] == [[0, 1]]
        assert stream_rows(0, 3) == []

    @settings(max_examples=100)
    @given(st.integers(0, 60), st.integers(1, 12))
    def test_every_sample_is_read_once_in_order(self, samples: int, streams: int) -> None:
        updates = stream_rows(samples, streams)
        assert sorted(np.concatenate([*updates, []]).tolist()) == list(range(samples))
        for before, after in itertools.pairwise(updates):
            assert after.tolist() == (before[: len(after)] + 1).tolist()
        lengths = [sum(len(rows) > stream for rows in updates) for stream in range(streams)]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] - lengths[-1] <= 1

    @settings(max_examples=100)
    @given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
    def test_updates_do_not_depend_on_ranks_and_update_freq(
        self, samples: int, streams: int, world: int, update_freq: int, done: int
    ) -> None:
        whole = [rows.tolist() for rows in stream_rows(samples, streams)][done:]
        ranks = [
            stream_plan(samples, streams, examples=done * streams, world=world, rank=rank, update_freq=update_freq)
            for rank in range(world)
        ]
        for number, rows in enumerate(whole):
            dealt = [ranks[rank][number][index] or [] for index in range(update_freq) for rank in range(world)]
            assert list(itertools.chain(*dealt)) == rows
        firsts = [[micro[0] for micro in update if micro] for rank in ranks for update in rank]
        assert all(first == sorted(first) for first in firsts)

    def test_each_stream_stays_in_its_micro_batch(self) -> None:
        assert stream_plan(5, 4, world=2, rank=1) == [[[3, 4]], [None]]
        assert stream_plan(6, 4, world=2, rank=0) == [[[0, 2]], [[1, 3]]]
        assert stream_plan(7, 4, world=2, rank=1) == [[[4, 6]], [[5]]]

    def test_position_in_streams_counts_examples(self) -> None:
        made = stream_updates(8, 3, position=Position(2, 3), world=2, rank=1)
        assert [update.position_after for update in made] == [Position(2, 6), Position(2, 8)]

    def test_streams_are_not_shuffled_or_skipped(self) -> None:
        sizes_ND = np.array([[5], [5], [5], [2]], dtype=np.int32)
        assert stream_plan(4, 2) == [[[0, 2]], [[1, 3]]]
        assert len(usable(sizes_ND, BatchingConfig(max_tokens=3, streams=2))[0]) == 4
        assert len(epoch_plan(sizes_ND, BatchingConfig(), seed=1, position=Position())) == 1

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            (BatchingConfig(streams=2, max_length=5), r"batch\.max_length"),
        ],
    )
    def test_streams_with_max_length_are_refused(self, config: BatchingConfig, words: str) -> None:
        with pytest.raises(UserError, match=words):
            usable(np.array([[3]], dtype=np.int32), config)
