"""What layers keep of the past in two tensors, a long and a short one, is what they would keep in one."""

import torch

from seqtk.ops import cache


def test_a_state_is_never_changed_so_that_a_search_may_go_on_from_any() -> None:
    key_BK1E = torch.randn(2, 1, 1, 4)
    state, seen = cache.empty("key", "value"), []
    for size in range(2 * cache.RECENT + 3):
        assert cache.length(state, "key") == size
        seen.append(state)
        state = cache.remember(state, key=size + 0 * key_BK1E, value=key_BK1E)
    assert seen[0] == cache.empty("key", "value")
    for size, state in enumerate(seen[1:], 1):
        keys = torch.cat(cache.segments(state, "key"), 2)
        assert keys[0, 0, :, 0].tolist() == list(range(size))


def test_some_positions_are_picked_across_the_two() -> None:
    state = cache.empty("key")
    for place in range(cache.RECENT + 9):
        state = cache.remember(state, key=torch.full((1, 1), place))
    for first, stride in ((0, 1), (7, 5), (cache.RECENT + 3, 1), (cache.RECENT + 3, 2), (cache.RECENT - 1, 4)):
        picked = cache.picked(state, "key", first=first, stride=stride)
        assert picked[:, 0].tolist() == list(range(first, cache.RECENT + 9, stride))
