"""Allocator settings, memory measurements, and errors when memory runs out."""

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from seqtk.utils.errors import UserError, is_out_of_memory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Makes glibc keep freed buffers for the next update.

    By default glibc returns large buffers to the system, and every update waits until the system has zeroed new ones.
    On a CPU, this takes a tenth to a third of the time. Other C libraries have no such setting and are not changed.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_gib(device: torch.device) -> float:
    """Returns the peak memory of this process in GiB: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def available_memory(device: torch.device) -> int | None:
    """Returns the number of bytes that this process can still use on a device; None if it is unknown."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # the limit of a container; "max" if it has none
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        limits.append(max(int((group / "memory.max").read_text()) - used, 0))
    return min(limits, default=None) if device.type == "cpu" else None


@contextmanager
def out_of_memory_errors(device: torch.device, *advice: str) -> Iterator[None]:
    """Converts out-of-memory errors of a GPU or a CPU into a UserError that ends with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"Out of memory on {device.type}.", *advice) from error


@contextmanager
def saved_bytes(module: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Collects the sizes of the tensors that a forward pass saves for the backward pass, by address.

    Weights are not counted, nor are those that `fully_shard` gathers for a block and releases after it.
    """
    whole = [parameter for parameter in module.parameters() if not hasattr(parameter, "to_local")]
    own = {parameter.untyped_storage().data_ptr() for parameter in whole}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        is_weight = isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)
        if not is_weight and storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved
