"""How large the largest tensor is that a computation makes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


def largest_tensor(compute: Callable[[], Tensor]) -> int:
    """The elements of the largest tensor that any operation of `compute`, or of its backward pass, makes."""
    with _Largest() as mode:
        compute().sum().backward()
    return mode.elements
