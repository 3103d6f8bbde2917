"""The recurrent state of contiguous streams (`batch.streams`). Each update passes it to the next update.

A state is a pytree whose leaves are None or tensors with the rows in the first dimension. Each process stores the rows
of its micro-batches. A checkpoint contains all rows, so a run can be resumed with a different number of processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from seqtk.attention import State
from seqtk.data.plan import BatchingConfig, Position, SizeArray, Update
from seqtk.data.streams import stream_slices, stream_updates
from seqtk.models.base import rows_of
from seqtk.training.parallel import Engine
from seqtk.utils.errors import UserError


class StreamState:
    """The recurrent state of this process's micro-batches.

    Raises:
        UserError: If there are more micro-batches than streams.
    """

    def __init__(self, streams: int, *, world: Engine, update_freq: int) -> None:
        if streams < world.size * update_freq:
            raise UserError(
                f"batch.streams={streams} cannot be split into {world.size * update_freq} micro-batches.",
                "Each process has update_freq micro-batches.",
                f"Set batch.streams={world.size * update_freq} or more, or lower update_freq.",
            )
        self.world, self.streams = world, streams
        self.parts = stream_slices(streams, world=world.size, rank=world.rank, update_freq=update_freq)
        self.states: list[State] = []
        self.clear()

    def plan(self, sizes_ND: SizeArray, config: BatchingConfig, *, position: Position) -> list[Update]:
        """Returns the remaining updates of an epoch for this process, in order."""
        return stream_updates(
            len(sizes_ND),
            self.streams,
            position=position,
            world=self.world.size,
            rank=self.world.rank,
            update_freq=len(self.parts),
            length=int(sizes_ND.max(initial=1)) if config.shapes else None,
        )

    def clear(self) -> None:
        """Resets the state of all streams."""
        self.states = [None] * len(self.parts)

    def load(self, index: int, *, rows: int) -> State:
        """Returns the first `rows` rows of the stored state of micro-batch `index`."""
        return rows_of(self.states[index], slice(rows))

    def store(self, index: int, state: State) -> None:
        """Stores the state after micro-batch `index`. Micro-batch `index` of the next update starts from it."""
        self.states[index] = state

    def restore(self, states: Sequence[State], *, unless: Tensor) -> None:
        """Stores the earlier `states` again, unless the boolean tensor `unless` is true.

        The device selects the states, without copying `unless` to the host, if their shapes and dtypes are the same.
        The shapes differ in the first updates of an epoch, until memories are full, and at its end, when some streams
        have ended.
        """
        (old, old_tree), (new, new_tree) = tree_flatten(list(states)), tree_flatten(self.states)
        if old_tree == new_tree and [_form(leaf) for leaf in old] == [_form(leaf) for leaf in new]:
            kept = [b if b is None else torch.where(unless, b, a) for a, b in zip(old, new, strict=True)]
            self.states = tree_unflatten(kept, new_tree)
        elif not bool(unless):
            self.states = list(states)

    def gather(self) -> State:
        """Returns the state of all rows of all processes, on the CPU. Collective."""
        leaves, specs = zip(*map(tree_flatten, self.states), strict=True)
        return tree_unflatten([self._gather_leaf(own) for own in zip(*leaves, strict=True)], specs[0])

    def _gather_leaf(self, own: Sequence[Tensor | None]) -> Tensor | None:
        """Returns all rows of a leaf: micro-batch 0 of all processes, then micro-batch 1 of all processes, …"""
        by_rank = self.world.gather([None if leaf is None else leaf.cpu() for leaf in own])
        pieces = [piece for of_index in zip(*by_rank, strict=True) for piece in of_index]
        return None if pieces[0] is None else torch.cat(pieces)

    def scatter(self, state: State) -> None:
        """Stores this process's rows of `state`, which has all rows. The inverse of `gather`."""
        device = self.world.device
        on_device = tree_map(lambda leaf: None if leaf is None else leaf.to(device), state)
        self.states = [rows_of(on_device, part) for part in self.parts]


def _form(leaf: Tensor | None) -> tuple[torch.Size, torch.dtype] | None:
    return None if leaf is None else (leaf.shape, leaf.dtype)
