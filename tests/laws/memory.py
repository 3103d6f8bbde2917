"""How much a layer holds at once: whether a cost that is stated linear is.

B batch, T length, D width of the layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqtk.attention import Attention, Role


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made within it stores; an expanded view stores what it was made of."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return made


def largest_tensor(layer: Attention, length: int, *, batch: int = 1, padding: int = 3) -> int:
    """The elements of the largest tensor that `layer`, in its role, makes forward and backward over `length` positions.

    The last `padding` positions of what is attended to are padding; a memory is as long as the input.
    """
    weight = next(layer.parameters(), torch.empty(0))  # FNet has none
    draw = {"dtype": weight.dtype, "device": weight.device}
    x_BTD = torch.randn(batch, length, layer.dim, **draw, requires_grad=True)  # type: ignore[call-overload]
    memory_BTM = None
    if layer.role is Role.CROSS:
        memory_BTM = torch.randn(batch, length, layer.memory_dim, **draw, requires_grad=True)  # type: ignore[call-overload]
    pad_BT = (torch.arange(length, device=weight.device) >= length - padding).expand(batch, -1)
    with Largest() as largest:
        layer(x_BTD, memory_BTM, pad_BS=pad_BT if padding else None).sum().backward()
    return largest.elements
