"""Properties of batches for any lengths and limits: each example once, sizes within the limits, exact resuming."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.data.plan import (
    BatchingConfig,
    IndexArray,
    Position,
    Update,
    epoch_batches,
    ordered_batches,
    updates,
    usable,
)

few = settings(max_examples=25)

lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=120).map(
    lambda pairs: np.array([(1, 1), *pairs], dtype=np.int32)
)
configs = st.builds(
    BatchingConfig,
    max_tokens=st.none() | st.integers(1, 300),
    max_sentences=st.integers(1, 20),
    size_multiple=st.sampled_from([1, 2, 4, 8]),
    max_length=st.none() | st.integers(1, 40),
    bucket=st.integers(1, 10),
)
seeds = st.integers(0, 2**31)


def check_budget(batches: list[IndexArray], sizes_N2: IndexArray, config: BatchingConfig) -> None:
    for batch in batches:
        assert 0 < len(batch) <= (config.max_sentences or len(batch))
        over = config.max_tokens is not None and len(batch) * sizes_N2[batch].max() > config.max_tokens
        assert not over or len(batch) == 1


@few
@given(lengths, configs, seeds, st.integers(1, 5))
def test_epoch_reads_every_example_once(sizes_N2: IndexArray, config: BatchingConfig, seed: int, epoch: int) -> None:
    kept, too_long = usable(sizes_N2, config)
    batches = epoch_batches(sizes_N2, config, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == kept.tolist()
    assert sorted([*kept, *too_long]) == list(range(len(sizes_N2)))
    assert all(sizes_N2[kept].max(axis=1) <= min(config.max_tokens or 99, config.max_length or 99))
    check_budget(batches, sizes_N2, config)


@few
@given(lengths, configs)
def test_ordered_batches_read_every_example_once(sizes_N2: IndexArray, config: BatchingConfig) -> None:
    batches = ordered_batches(sizes_N2, config)
    assert sorted(np.concatenate(batches)) == list(range(len(sizes_N2)))
    check_budget(batches, sizes_N2, config)


@few
@given(lengths, configs, seeds)
def test_batches_depend_on_their_arguments_only(sizes_N2: IndexArray, config: BatchingConfig, seed: int) -> None:
    before = sizes_N2.copy()
    np.random.seed(seed % 1000)
    first = epoch_batches(sizes_N2, config, seed=seed, epoch=1)
    np.random.seed(1)
    second = epoch_batches(sizes_N2, config, seed=seed, epoch=1)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]
    assert (before == sizes_N2).all()


def consumed(plans: list[list[Update]]) -> list[int]:
    """Returns the examples that all ranks read, in the global order of micro-batches."""
    order = []
    for rank_updates in zip(*plans, strict=True):
        for micro in zip(*(update.indices for update in rank_updates), strict=True):
            order += [index for indices in micro if indices is not None for index in indices.tolist()]
    return order


splits = st.tuples(st.integers(1, 4), st.integers(1, 3))


@few
@given(lengths, configs, splits, splits, st.integers(0, 30))
def test_resuming_reads_each_example_once(
    sizes_N2: IndexArray, config: BatchingConfig, before: tuple[int, int], after: tuple[int, int], stop: int
) -> None:
    batches = epoch_batches(sizes_N2, config, seed=1, epoch=1)

    def plans(split: tuple[int, int], position: Position) -> list[list[Update]]:
        world, update_freq = split
        return [
            updates(batches, position=position, world=world, rank=rank, update_freq=update_freq)
            for rank in range(world)
        ]

    whole = plans(before, Position(1, 0))
    made = [plan[:stop] for plan in whole]
    position = made[0][-1].position_after if made[0] else Position(1, 0)
    assert all(plan[-1].position_after == position for plan in made if plan)
    assert consumed(made) + consumed(plans(after, position)) == list(itertools.chain(*(b.tolist() for b in batches)))
    same_again = plans(before, position)
    assert consumed(same_again) == consumed([plan[stop:] for plan in whole])
    assert [u.position_after for u in same_again[0]] == [u.position_after for u in whole[0][stop:]]
