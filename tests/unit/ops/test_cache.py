"""The cache: a step changes no earlier state, and the two tensors have all positions in order."""

import torch

from seqtk.ops import cache
from seqtk.ops.dispatch import naive_ops


class TestStates:
    def test_step_does_not_change_earlier_states(self) -> None:
        key_BK1E = torch.randn(2, 1, 1, 4)
        state, states = cache.empty("key", "value"), []
        for size in range(2 * cache.RECENT + 3):
            assert cache.length(state, "key") == size
            states.append(state)
            state = cache.remember(state, key=size + 0 * key_BK1E, value=key_BK1E)
        assert states[0] == cache.empty("key", "value")
        for size, state in enumerate(states[1:], 1):
            keys = torch.cat(cache.segments(state, "key"), 2)
            assert keys[0, 0, :, 0].tolist() == list(range(size))

    def test_picked_reads_recent_and_older_positions(self) -> None:
        state = cache.empty("key")
        for place in range(cache.RECENT + 9):
            state = cache.remember(state, key=torch.full((1, 1), place))
        for first, stride in ((0, 1), (7, 5), (cache.RECENT + 3, 1), (cache.RECENT + 3, 2), (cache.RECENT - 1, 4)):
            picked = cache.picked(state, "key", first=first, stride=stride)
            assert picked[:, 0].tolist() == list(range(first, cache.RECENT + 9, stride))

    def test_naive_cache_is_one_tensor(self) -> None:
        state = cache.empty("key")
        with naive_ops():
            for _ in range(cache.RECENT + 9):
                state = cache.remember(state, key=torch.zeros(1, 1))
        assert [key.shape[-2] for key in cache.segments(state, "key")] == [cache.RECENT + 9]
