"""How much a layer holds at once: whether a cost that is stated linear is.

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


class Measure(TorchDispatchMode):
    """Notes what the tensors made within it store; an expanded view stores what it was made of."""

    largest = 0
    """Elements of the largest."""
    peak = 0
    """The most bytes that were held at once."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.largest = max(self.largest, storage.nbytes() // leaf.element_size())
                reference = StorageWeakRef(storage)
                self._held[reference.cdata] = reference, storage.nbytes()
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return made


def largest_tensor(layer: Attention, length: int) -> int:
    """The elements of the largest tensor that `layer`, in its role, makes forward and backward over `length` positions.

    A memory is as long as the input, and the last positions of what is attended to are padding.
    """
    return _measured(layer, length).largest


def peak_memory(layer: Attention, length: int) -> int:
    """The most bytes that all its tensors take at once, those that wait for the backward pass among them."""
    return _measured(layer, length).peak


def _measured(layer: Attention, length: int) -> Measure:
    weight = next(layer.parameters(), torch.empty(0))  # FNet has none
    x_1TD = weight.new_empty(1, length, layer.dim).normal_().requires_grad_()
    memory_1TM = None
    if layer.role is Role.CROSS:
        memory_1TM = weight.new_empty(1, length, layer.memory_dim).normal_().requires_grad_()
    pad_1T = torch.arange(length, device=weight.device)[None] >= length - PADDING
    with Measure() as measure:
        layer(x_1TD, memory_1TM, pad_BS=pad_1T)[0].sum().backward()
    return measure
