"""Measures the memory that a layer allocates.

T length, D width of the layer, M width of the memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqtk.attention import Attention, Role

PADDING = 3
"""The number of padding positions at the end of the measured input."""


class Measure(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that measures the memory of all tensors created inside it. Views of a tensor are not counted."""

    largest = 0
    """The number of elements of the largest tensor."""
    peak = 0
    """The peak number of bytes in use at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.largest = max(self.largest, storage.nbytes() // leaf.element_size())
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[reference.cdata] = reference, storage.nbytes()
        self._alive = {
            key: entry
            for key, entry in self._alive.items()
            if not entry[0].expired()  # type: ignore[no-untyped-call]
        }
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def measured(layer: Attention, length: int) -> Measure:
    """Returns the measurements of a forward and backward pass over `length` positions.

    For a CROSS layer, the encoder output has the same length. The last `PADDING` positions are padding.
    """
    weight = next(layer.parameters(), torch.empty(0))  # FNet has no parameters
    x_1TD = weight.new_empty(1, length, layer.dim).normal_().requires_grad_()
    memory_1TM = None
    if layer.role is Role.CROSS:
        memory_1TM = weight.new_empty(1, length, layer.memory_dim).normal_().requires_grad_()
    pad_1T = torch.arange(length, device=weight.device)[None] >= length - PADDING
    measure = Measure()
    with measure:
        y_1TD, _ = layer(x_1TD, memory_1TM, pad_BS=pad_1T)
        y_1TD.sum().backward()
    return measure
