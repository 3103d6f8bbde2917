"""Token blocks: each token is a target once, and each block starts with its context."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.data.blocks import (
    SEPARATOR_LENGTH,
    BreakMode,
    ContextBlocks,
    TokenBlocks,
    block_bounds,
    collate_blocks,
    collate_windows,
)
from seqtk.data.indexed import IndexedDataset
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.vocabulary import EOS, PAD
from seqtk.utils.errors import UserError

MODES: tuple[BreakMode, ...] = ("none", "complete", "complete_doc", "eos")


def naive(sizes: list[int], mode: BreakMode, longest: int) -> list[list[int]]:
    """Returns the bounds of the blocks, computed with a plain loop over the items."""
    if mode == "none":
        return [[start, min(start + longest, sum(sizes))] for start in range(0, sum(sizes), longest)]
    found, start, length = [], 0, 0
    for size in sizes:
        separates = mode == "complete_doc" and size == SEPARATOR_LENGTH
        if length and (mode == "eos" or separates or length + size > longest):
            found.append([start, start + length])
            start, length = start + length, 0
        if separates:
            start += size
        else:
            length += size
    return [*found, [start, start + length]] if length else found


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), max_size=60), st.sampled_from(MODES), st.integers(1, 20))
def test_block_bounds_equal_a_plain_loop(sizes: list[int], mode: BreakMode, longest: int) -> None:
    bounds_K2 = block_bounds(np.array(sizes, dtype=np.int32), break_mode=mode, tokens_per_sample=longest)
    assert bounds_K2.tolist() == naive(sizes, mode, longest)


@pytest.fixture
def items(tmp_path: Path) -> IndexedDataset:
    """Four lines of token ids, each with EOS. The third line is empty."""
    lines = [[10, 11, EOS], [12, 13, 14, 15, EOS], [EOS], [16, EOS]]
    with IndexedWriter(tmp_path / "train", vocabulary_size=100) as writer:
        for line in lines:
            writer.append(line)
    return IndexedDataset(tmp_path / "train")


@pytest.mark.parametrize("mode", MODES)
def test_every_token_is_a_target_once(items: IndexedDataset, mode: BreakMode) -> None:
    blocks = TokenBlocks(items, break_mode=mode, tokens_per_sample=4)
    stream = items.stream(0, items.total).tolist()
    targets = []
    for index in range(len(blocks)):
        number, ids = blocks[index]
        start, end = blocks.bounds_K2[index]
        assert number == index
        assert ids[1:].tolist() == stream[start:end]
        assert ids[0] == (stream[start - 1] if start else EOS)
        assert blocks.sizes_ND[index].tolist() == [end - start]
        targets += ids[1:].tolist()
    assert targets == ([token for at, token in enumerate(stream) if at != 8] if mode == "complete_doc" else stream)


def test_items_without_eos_are_read(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "train", vocabulary_size=100) as writer:
        writer.extend_arrays(np.array([10, 11, 12, 13]), np.array([2, 2]))
    items = IndexedDataset(tmp_path / "train")
    stream = TokenBlocks(items, tokens_per_sample=2)
    assert [stream[index][1].tolist() for index in range(2)] == [[EOS, 10, 11], [11, 12, 13]]
    lines = TokenBlocks(items, break_mode="eos")
    assert [lines[index][1].tolist() for index in range(2)] == [[EOS, 10, 11], [EOS, 12, 13]]


def test_pickled_blocks_read_equal_items(items: IndexedDataset) -> None:
    blocks = TokenBlocks(items, tokens_per_sample=4)
    again = pickle.loads(pickle.dumps(blocks))
    assert [again[index][1].tolist() for index in range(3)] == [blocks[index][1].tolist() for index in range(3)]


def test_sample_length_of_zero_is_refused(items: IndexedDataset) -> None:
    with pytest.raises(UserError, match="tokens_per_sample=0"):
        TokenBlocks(items, tokens_per_sample=0)


def test_batch_is_padded_right_and_counts_its_targets() -> None:
    batch = collate_blocks([(5, np.array([EOS, 10, 11])), (2, np.array([11, 12]))])
    assert (batch.ids_B.tolist(), batch.weight) == ([5, 2], 3)
    assert batch.previous_BT.tolist() == [[EOS, 10], [11, PAD]]
    assert batch.target_BT.tolist() == [[10, 11], [12, PAD]]
    empty = batch.as_empty()
    assert (empty.weight, empty.target_BT.shape) == (0, batch.target_BT.shape)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    mode=st.sampled_from(MODES),
    window=st.integers(0, 8),
    more=st.integers(1, 12),
)
def test_context_precedes_the_targets_of_a_block(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], mode: BreakMode, window: int, more: int
) -> None:
    stream = [10 + place for place in range(sum(sizes))]
    ends = np.cumsum(sizes)
    for end in ends:
        stream[end - 1] = EOS
    prefix = tmp_path_factory.mktemp("blocks") / "train"
    with IndexedWriter(prefix, vocabulary_size=1000) as writer:
        writer.extend_arrays(np.array(stream), np.array(sizes))
    longest = window + more
    blocks = ContextBlocks(IndexedDataset(prefix), break_mode=mode, tokens_per_sample=longest, context_window=window)
    separators = [int(end) for end, size in zip(ends, sizes, strict=True) if size == SEPARATOR_LENGTH]
    assert blocks.bounds_K2.tolist() == naive(sizes, mode, more)
    for index, (start, end) in enumerate(blocks.bounds_K2.tolist()):
        floor = max([0, *(place for place in separators if place <= start)]) if mode == "complete_doc" else 0
        read = [EOS, *stream[floor : end - 1]]  # all tokens that the block may contain
        read = read[-(end - start + min(window, max(0, longest - (end - start)))) :]
        number, ids, known = blocks[index]
        assert (number, ids[:-1].tolist()) == (index, read)
        assert ids[known:].tolist() == stream[start:end]
        assert blocks.sizes_ND[index].tolist() == [len(read)]
        assert len(read) <= max(longest, end - start)


def test_context_must_be_shorter_than_a_sample(items: IndexedDataset) -> None:
    for window in (-1, 4):
        with pytest.raises(UserError, match="does not fit in tokens_per_sample=4"):
            ContextBlocks(items, break_mode="none", tokens_per_sample=4, context_window=window)


def test_context_is_not_a_target() -> None:
    batch = collate_windows([(0, np.array([EOS, 10, 11, 12]), 3), (1, np.array([12, 13, 14]), 1)])
    assert batch.previous_BT.tolist() == [[EOS, 10, 11], [12, 13, PAD]]
    assert batch.target_BT.tolist() == [[PAD, PAD, 12], [13, 14, PAD]]
    assert batch.weight == 3
