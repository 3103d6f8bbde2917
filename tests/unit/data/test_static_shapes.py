"""Static shapes: few shapes in a run, each example once, equal shapes on all ranks, and exact resuming."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.data.batch import TranslationBatch, collate_pairs
from seqtk.data.blocks import collate_blocks
from seqtk.data.encoder_batches import ClassBatch, MaskedBatch, PairBatch
from seqtk.data.loader import load_updates
from seqtk.data.plan import BatchingConfig, IndexArray, Position, Update, epoch_plan, padding_share, run_shapes, usable
from seqtk.data.static_shapes import Shape, boundaries
from seqtk.data.streams import stream_updates
from seqtk.data.vocabulary import EOS, PAD

few = settings(max_examples=40)

lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=150).map(
    lambda pairs: np.array([(1, 1), *pairs], dtype=np.int32)
)
configs = st.builds(
    BatchingConfig,
    shapes=st.integers(1, 12),
    max_tokens=st.none() | st.integers(1, 300),
    max_sentences=st.integers(1, 20),
    size_multiple=st.sampled_from([1, 2, 4]),
    max_length=st.none() | st.integers(1, 40),
)
splits = st.tuples(st.integers(1, 4), st.integers(1, 3))
WORDS = np.random.RandomState(0).lognormal(2.5, 0.5, 4000).clip(1, 90)
PAIRS_N2 = np.stack([WORDS, WORDS * np.random.RandomState(1).lognormal(0, 0.2, 4000)], axis=1).astype(np.int32) + 1


def plans(
    sizes: IndexArray, config: BatchingConfig, split: tuple[int, int] = (1, 1), position: Position | None = None
) -> list[list[Update]]:
    world, update_freq = split
    shapes = run_shapes(sizes, config)
    return [
        epoch_plan(
            sizes,
            config,
            seed=1,
            position=position or Position(),
            world=world,
            rank=rank,
            update_freq=update_freq,
            shapes=shapes,
        )
        for rank in range(world)
    ]


def read(ranks: list[list[Update]]) -> list[int]:
    """Returns the sorted indices of the examples that all ranks read."""
    parts = [indices for plan in ranks for update in plan for indices in update.indices if indices is not None]
    return sorted(np.concatenate([*parts, np.zeros(0, dtype=np.int64)]).tolist())


def shapes_in(ranks: list[list[Update]]) -> set[Shape]:
    return {shape for plan in ranks for update in plan for shape in update.shapes}


class TestPlan:
    @few
    @given(lengths, configs, splits)
    def test_each_example_is_in_one_batch_of_few_shapes(
        self, sizes_N2: IndexArray, config: BatchingConfig, split: tuple[int, int]
    ) -> None:
        known, ranks = run_shapes(sizes_N2, config), plans(sizes_N2, config, split)
        assert read(ranks) == usable(sizes_N2, config)[0].tolist()
        assert len(known) <= (config.shapes or 0)
        for update in itertools.chain(*ranks):
            for (indices, shape), real in zip(update.micro_batches, update.indices, strict=True):
                assert shape in known
                assert len(indices) <= shape.rows
                assert (sizes_N2[indices] <= shape.lengths).all()
                assert real is not None or len(indices) == 1

    @few
    @given(lengths, configs)
    def test_shapes_are_within_the_batch_limits(self, sizes_N2: IndexArray, config: BatchingConfig) -> None:
        for shape in run_shapes(sizes_N2, config):
            assert shape.rows * max(shape.lengths) <= (config.max_tokens or 10**9)
            assert shape.rows <= (config.max_sentences or 0)
            assert shape.rows % config.size_multiple == 0 or shape.rows < config.size_multiple

    @few
    @given(lengths, configs, splits, splits, st.integers(0, 30))
    def test_resuming_reads_each_example_once(
        self, sizes_N2: IndexArray, config: BatchingConfig, before: tuple[int, int], after: tuple[int, int], stop: int
    ) -> None:
        whole = plans(sizes_N2, config, before)
        made = [plan[:stop] for plan in whole]
        position = made[0][-1].position_after if made[0] else Position()
        rest = plans(sizes_N2, config, after, position)
        assert sorted(read(made) + read(rest)) == read(whole)
        assert shapes_in(rest) <= set(run_shapes(sizes_N2, config))
        again = plans(sizes_N2, config, before, position)
        assert [update.shapes for update in again[0]] == [update.shapes for update in whole[0][stop:]]
        assert read(again) == read([plan[stop:] for plan in whole])

    def test_shapes_are_the_same_in_all_epochs(self) -> None:
        config = BatchingConfig(max_tokens=400, shapes=8)
        first, second = (plans(PAIRS_N2, config, position=Position(epoch))[0] for epoch in (1, 2))
        assert [u.indices[0].tolist() for u in first if u.indices[0] is not None] != [
            u.indices[0].tolist() for u in second if u.indices[0] is not None
        ]
        assert Counter(u.shapes for u in first) == Counter(u.shapes for u in second)

    def test_batches_do_not_depend_on_global_random_state(self) -> None:
        config = BatchingConfig(max_tokens=400, shapes=8)
        np.random.seed(1)
        first = plans(PAIRS_N2, config)[0]
        np.random.seed(2)
        second = plans(PAIRS_N2, config)[0]
        assert all(np.array_equal(one.indices[0], two.indices[0]) for one, two in zip(first, second, strict=True))

    def test_order_of_batches_is_shuffled(self) -> None:
        longest = [max(u.shapes[0].lengths) for u in plans(PAIRS_N2, BatchingConfig(max_tokens=400, shapes=8))[0]]
        assert longest != sorted(longest)
        assert longest != sorted(longest, reverse=True)

    def test_more_shapes_give_less_padding(self) -> None:
        shares = []
        for shapes in (1, 4, 16, 64):
            (plan,) = plans(PAIRS_N2, BatchingConfig(max_tokens=1000, shapes=shapes))
            shares.append(padding_share(plan, PAIRS_N2))
        assert shares == sorted(shares, reverse=True)
        assert shares[2] < 0.16

    def test_equal_lengths_give_one_shape_without_padding(self) -> None:
        images = np.full((103, 1), 1024, dtype=np.int32)
        config = BatchingConfig(max_tokens=None, max_sentences=10, shapes=16)
        assert run_shapes(images, config) == (Shape(10, (1024,), exact=True),)
        assert len(plans(images, config)[0]) == 11

    def test_a_short_last_sample_adds_no_shape(self) -> None:
        blocks = np.append(np.full(400, 64), 3)[:, None].astype(np.int32)
        assert run_shapes(blocks, BatchingConfig(max_tokens=640, shapes=4)) == (Shape(10, (64,)),)

    def test_joined_sides_have_equal_lengths(self) -> None:
        for shape in run_shapes(PAIRS_N2, BatchingConfig(shapes=8), joined=True):
            assert len(set(shape.lengths)) == 1

    def test_longer_examples_in_a_later_epoch_fit_a_shape(self) -> None:
        config = BatchingConfig(max_tokens=400, shapes=4)
        known = run_shapes(PAIRS_N2, config)
        longer = PAIRS_N2.copy()
        longer[:3, 1] = PAIRS_N2.max() + 5
        plan = epoch_plan(longer, config, seed=1, position=Position(2), shapes=known)
        assert read([plan]) == list(range(len(longer)))
        assert len(shapes_in([plan])) <= 4

    def test_plan_has_no_shapes_by_default(self) -> None:
        config = BatchingConfig(max_tokens=400)
        assert run_shapes(PAIRS_N2, config) == ()
        assert not any(update.shapes for update in plans(PAIRS_N2, config)[0])

    def test_length_boundaries_minimize_padding(self) -> None:
        """The padding is compared with the padding of all possible sets of boundaries."""
        random = np.random.RandomState(3)
        for _ in range(20):
            length_N, count_N = np.unique(random.randint(1, 30, size=9)), random.randint(1, 50, size=9)
            count_N = count_N[: len(length_N)]
            for buckets, found in enumerate(boundaries(length_N, count_N, buckets=4), start=1):
                sets = itertools.combinations(length_N[:-1].tolist(), buckets - 1)
                every = [np.array([*chosen, length_N[-1]]) for chosen in sets]
                cost = [int((limits[np.searchsorted(limits, length_N)] * count_N).sum()) for limits in [found, *every]]
                assert cost[0] == min(cost)


class TestStreams:
    def test_micro_batches_of_streams_have_one_shape(self) -> None:
        ranks = [
            stream_updates(7, 4, position=Position(), world=2, rank=rank, update_freq=1, length=16) for rank in (0, 1)
        ]
        assert shapes_in(ranks) == {Shape(2, (16,))}
        assert [[len(indices) for indices, _ in update.micro_batches] for update in ranks[1]] == [[2], [1]]


class TestFilling:
    def test_filler_rows_have_the_first_source_and_no_target(self) -> None:
        batch = collate_pairs([(4, np.array([7, 8, EOS]), np.array([9, EOS])), (6, np.array([EOS]), np.array([EOS]))])
        filled = batch.filled(Shape(4, (5, 3)))
        assert isinstance(filled, TranslationBatch)
        assert filled.ids_B.tolist() == [4, 6, -1, -1]
        assert (filled.weight, filled.fillers, filled.examples) == (3, 2, [4, 6])
        assert filled.source_BS[[0, 2, 3]].tolist() == [[7, 8, EOS, PAD, PAD]] * 3
        assert filled.previous_BT[2].tolist() == [EOS, 9, PAD]
        assert filled.target_BT.tolist() == [[9, EOS, PAD], [EOS, PAD, PAD], [PAD] * 3, [PAD] * 3]

    def test_filler_rows_of_language_batches_have_no_targets(self) -> None:
        filled = collate_blocks([(5, np.array([EOS, 10, 11]))]).filled(Shape(2, (4,)))
        assert filled.previous_BT.tolist() == [[EOS, 10, PAD, PAD]] * 2
        assert filled.target_BT.tolist() == [[10, 11, PAD, PAD], [PAD] * 4]

    def test_filler_rows_of_masked_batches_have_no_targets(self) -> None:
        batch = MaskedBatch(torch.tensor([3]), 1, torch.tensor([[5, 6]]), torch.tensor([[PAD, 7]]))
        filled = batch.filled(Shape(2, (3,)))
        assert filled.source_BS.tolist() == [[5, 6, PAD]] * 2
        assert filled.target_BS.tolist() == [[PAD, 7, PAD], [PAD] * 3]

    @pytest.mark.parametrize(("exact", "padded"), [(True, False), (False, True)])
    def test_batch_of_exact_shape_needs_no_padding_mask(self, exact: bool, padded: bool) -> None:
        batch = ClassBatch(torch.tensor([3]), 1, torch.tensor([[5, 6]]), torch.tensor([1]), padded=False)
        filled = batch.filled(Shape(3, (2,), exact=exact))
        assert filled.padded is padded
        assert filled.target_B.tolist() == [1, -1, -1]
        assert filled.targets == 1

    def test_both_texts_of_a_pair_are_padded_to_one_length(self) -> None:
        ids = torch.tensor([[5, 6]])
        batch = PairBatch(torch.tensor([3]), 1, ids, torch.tensor([1]), second_BS=ids + 1)
        assert batch.filled(Shape(2, (3, 4))).texts.tolist() == [[5, 6, PAD, PAD]] * 2 + [[6, 7, PAD, PAD]] * 2

    def test_shape_smaller_than_the_batch_is_an_error(self) -> None:
        batch = collate_blocks([(5, np.array([EOS, 10, 11])), (6, np.array([EOS, 10]))])
        for shape in (Shape(1, (9,)), Shape(2, (1,))):
            with pytest.raises(ValueError, match="fit"):
                batch.filled(shape)


class Blocks:
    """A picklable dataset with lengths from 1 to 9."""

    sizes_ND = (np.arange(40)[:, None] % 9 + 1).astype(np.int32)

    def __len__(self) -> int:
        return len(self.sizes_ND)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, np.arange(int(self.sizes_ND[index, 0]) + 1) + 10


@pytest.mark.parametrize("workers", [0, 1])
def test_loaded_batches_have_the_planned_shapes(workers: int) -> None:
    dataset, config = Blocks(), BatchingConfig(max_tokens=20, shapes=3)
    ranks = plans(dataset.sizes_ND, config, (2, 2))
    weights = 0.0
    for plan in ranks:
        for update, batches in load_updates(plan, dataset, collate_blocks, workers=workers):
            found = [(len(batch.ids_B), (batch.target_BT.shape[1],)) for batch in batches]
            assert found == [(shape.rows, shape.lengths) for shape in update.shapes]
            assert [batch.weight == 0 for batch in batches] == [indices is None for indices in update.indices]
            weights += sum(batch.weight for batch in batches)
    assert weights == dataset.sizes_ND.sum()
    assert any(indices is None for update in ranks[1] for indices in update.indices)
