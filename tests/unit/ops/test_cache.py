"""What layers keep of the past in two tensors, a long and a short one, is what they would keep in one."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from seqtk.attention import Role
from seqtk.ops import cache
from tests.laws.cases import Case, cases

CPU = torch.device("cpu")


def is_long(case: Case) -> bool:
    """Whether its state grows with every position."""
    return "past_value" in case.make(CPU).start(1)


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


@pytest.mark.parametrize("case", [*filter(is_long, cases(Role.CAUSAL))], ids=lambda case: case.name)
def test_steps_with_two_tensors_equal_the_parallel_form_also_when_rows_are_reordered(case: Case) -> None:
    length = cache.RECENT + 4
    fields = {field.name for field in dataclasses.fields(case.config)}
    room: dict[str, Any] = {"max_length": length} if "max_length" in fields else {}
    layer = case.make(CPU, **room)
    order, state = torch.tensor([1, 1, 0]), layer.start(2)
    x_BTD = torch.randn(2, length, layer.dim, dtype=torch.float64)
    with torch.no_grad():
        y_BTD = layer(x_BTD)[0]
        for t in range(length - 2):
            y_B1D, state = layer.step(x_BTD[:, t : t + 1], state)
            torch.testing.assert_close(y_B1D, y_BTD[:, t : t + 1], rtol=1e-9, atol=1e-9)
        state = tree_map(lambda leaf: None if leaf is None else leaf[order], state)
        for t in range(length - 2, length):
            y_B1D, state = layer.step(x_BTD[order, t : t + 1], state)
            torch.testing.assert_close(y_B1D, y_BTD[order, t : t + 1], rtol=1e-9, atol=1e-9)
    assert all(leaf is None or len(leaf) == 3 for leaf in tree_leaves(state))
