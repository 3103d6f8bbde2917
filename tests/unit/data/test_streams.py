"""Unit tests of streams: each sample once, in its order along a row, whoever reads which rows."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.data.batching import BatchingConfig, usable
from seqtk.data.loader import Position
from seqtk.data.streams import epoch_plan, stream_rows, stream_updates
from seqtk.utils.errors import UserError


def plan(samples: int, streams: int, *, examples: int = 0, **share: int) -> list[list[list[int] | None]]:
    made = stream_updates(samples, streams, position=Position(2, examples), **share)
    return [[None if rows is None else rows.tolist() for rows in update.indices] for update in made]


def test_rows_go_on_where_they_ended_and_longer_ones_come_first() -> None:
    assert [rows.tolist() for rows in stream_rows(8, 3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [rows.tolist() for rows in stream_rows(2, 3)] == [[0, 1]]
    assert stream_rows(0, 3) == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12))
def test_every_sample_is_read_once_and_follows_the_one_before_it(samples: int, streams: int) -> None:
    updates = stream_rows(samples, streams)
    assert sorted(np.concatenate([*updates, []]).tolist()) == list(range(samples))
    for before, after in itertools.pairwise(updates):
        assert after.tolist() == (before[: len(after)] + 1).tolist()
    lengths = [sum(len(rows) > stream for rows in updates) for stream in range(streams)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_an_update_is_the_same_however_it_is_cut(
    samples: int, streams: int, world: int, update_freq: int, done: int
) -> None:
    whole = [rows.tolist() for rows in stream_rows(samples, streams)][done:]
    ranks = [
        plan(samples, streams, examples=done * streams, world=world, rank=rank, update_freq=update_freq)
        for rank in range(world)
    ]
    for number, rows in enumerate(whole):
        dealt = [ranks[rank][number][index] or [] for index in range(update_freq) for rank in range(world)]
        assert list(itertools.chain(*dealt)) == rows
    firsts = [[micro[0] for micro in update if micro] for rank in ranks for update in rank]
    assert all(first == sorted(first) for first in firsts)


def test_a_row_stays_in_its_micro_batch_when_others_end() -> None:
    assert plan(5, 4, world=2, rank=1) == [[[3, 4]], [None]]
    assert plan(6, 4, world=2, rank=0) == [[[0, 2]], [[1, 3]]]
    assert plan(7, 4, world=2, rank=1) == [[[4, 6]], [[5]]]


def test_the_position_counts_examples() -> None:
    made = stream_updates(8, 3, position=Position(2, 3), world=2, rank=1)
    assert [update.position_after for update in made] == [Position(2, 6), Position(2, 8)]


def test_a_config_with_streams_shuffles_nothing_and_leaves_nothing_out() -> None:
    sizes_ND = np.array([[5], [5], [5], [2]], dtype=np.int32)
    config = BatchingConfig(max_tokens=3, streams=2)
    made = epoch_plan(sizes_ND, config, seed=1, position=Position())
    assert [rows.tolist() for update in made for rows in update.indices if rows is not None] == [[0, 2], [1, 3]]
    assert len(usable(sizes_ND, config)[0]) == 4
    assert len(epoch_plan(sizes_ND, BatchingConfig(), seed=1, position=Position())) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BatchingConfig(streams=0), "streams=0 must be at least 1"),
        (BatchingConfig(streams=2, max_length=5), r"batch\.max_length leaves some out"),
    ],
)
def test_streams_that_cannot_be(config: BatchingConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        usable(np.array([[3]], dtype=np.int32), config)
