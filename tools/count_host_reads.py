"""Counts how often the host reads a number from the device. At each read, the host waits until the device is idle.

Boolean indexing (`nonzero`) also waits, because the size of its result depends on the data. It is counted separately.
"""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "equal")
DYNAMIC_SHAPES = ("nonzero", "masked_select", "_unique2", "unique_dim")


class _Counter(TorchDispatchMode):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, self.count = names, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.names
        return func(*args, **(kwargs or {}))


def count_host_reads(function: Callable[[], object], names: tuple[str, ...] = READS) -> int:
    """Returns how often `function` runs the operators `names`. The number is the same on every device."""
    with _Counter(names) as counter:
        function()
    return counter.count
