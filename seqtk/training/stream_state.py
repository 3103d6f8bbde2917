"""What the rows of a micro-batch hand to those of the next update, where `batch.streams` reads samples in their order.

A pytree whose leaves are tensors with the rows first, or None. Each process holds it for its own rows; it is saved for
all of them together, so that a run may go on with other processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from seqtk.attention import State
from seqtk.data.plan import stream_slices
from seqtk.generation.decoder_state import rows_of
from seqtk.training.parallel import World
from seqtk.utils.errors import UserError


class Carried:
    """The state between updates of the rows of this process; always None if `streams` is.

    Raises UserError if there are more micro-batches than streams.
    """

    def __init__(self, streams: int | None, *, world: World, update_freq: int = 1) -> None:
        if streams is not None and streams < world.size * update_freq:
            raise UserError(
                f"batch.streams={streams} cannot be split into {world.size * update_freq} micro-batches.",
                "Each process takes update_freq of them: set that lower, or batch.streams to their number or more.",
            )
        self.world = world
        self.parts = (
            []
            if streams is None
            else stream_slices(streams, world=world.size, rank=world.rank, update_freq=update_freq)
        )
        self.states: list[State] = []
        self.clear()

    def clear(self) -> None:
        """Let every stream begin."""
        self.states = [None] * len(self.parts)

    def into(self, index: int, *, rows: int) -> State:
        """What goes into micro-batch `index`, of which no more than the first `rows` may be left."""
        return rows_of(self.states[index], slice(rows)) if self.parts else None

    def out_of(self, index: int, state: State) -> None:
        """Keep what came out of micro-batch `index`."""
        if self.parts:
            self.states[index] = state

    def of_all(self) -> State:
        """The state of all rows of all processes, in their order, on the CPU; every process has to ask for it."""
        if not self.parts:
            return None
        leaves, specs = zip(*map(tree_flatten, self.states), strict=True)
        return tree_unflatten([self._of_all(own) for own in zip(*leaves, strict=True)], specs[0])

    def _of_all(self, own: Sequence[Tensor | None]) -> Tensor | None:
        """All rows of one leaf, of which `own` are this process's: micro-batch i of each process, then i + 1."""
        by_rank = self.world.gather([None if leaf is None else leaf.cpu() for leaf in own])
        pieces = [piece for of_each in zip(*by_rank, strict=True) for piece in of_each]
        return None if pieces[0] is None else torch.cat(pieces)

    def deal(self, whole: State) -> None:
        """Take this process's rows of what `of_all` gave, here or in a run of other processes."""
        device = self.world.device
        on_device = tree_map(lambda leaf: None if leaf is None else leaf.to(device), whole)
        self.states = [rows_of(on_device, part) for part in self.parts]
