"""A device that is not the CPU, for tests of the code for GPUs on machines without a GPU.

Tensors on this device are computed by the CPU's kernels. As on a GPU, an operation fails if some of its tensors are on
the CPU. `reads` lists each operation with which the host waits for the device. Autocast is as on a GPU for the
operations that `_LOWER` and `_UPPER` name.

`register` changes torch for the rest of the process, so tests use this module in a process of their own:
`python -m tests.laws.on_other_device`. It needs torch's support for devices that are written in Python.
"""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "other"
_READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique", "bincount")
_LOWER = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "scaled_dot_product_attention")
_UPPER = ("layer_norm", "softmax.int", "exp", "cumsum")

reads: list[str] = []
"""The operations for which the host had to wait, with the line of seqtk that called each."""


def is_supported() -> bool:
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def register() -> torch.device:
    """Adds the device to torch, and returns it."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    # Modules that move to the device keep their parameters, so that shared parameters stay shared.
    torch.__future__.set_swap_module_params_on_conversion(True)
    for name, function in (("empty_strided", _empty_strided), ("empty.memory_format", _empty), ("_copy_from", _copy)):
        _LIBRARY.impl(name, function, "PrivateUse1")
    _FALLBACK.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, dtype in ((_LOWER, None), (_UPPER, torch.float32)):
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default", getattr(torch.ops.aten, packet))
            _LIBRARY.impl(name, _with_autocast(operator, dtype), "AutocastPrivateUse1")
    return torch.device(NAME, 0)


class OtherTensor(Tensor):
    """A tensor on the device. `on_cpu` has its values."""

    on_cpu: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "OtherTensor":
        result: OtherTensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        result.on_cpu = on_cpu.resolve_conj().resolve_neg()
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OtherTensor({self.on_cpu})"

    def tolist(self) -> Any:
        _note("tolist")
        return self.on_cpu.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor on a device has no numpy array")


class OnOtherDevice(TorchDispatchMode):
    """Within this context, tensors can be created on the device and moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the CPU. Its results are on the device if one of its tensors is, or `device` names it."""
    name, leaves = func.__name__, tree_leaves((args, kwargs))
    others = [leaf for leaf in leaves if isinstance(leaf, OtherTensor)]
    device = kwargs.get("device")
    if device is not None:
        is_on_device = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")} if is_on_device else kwargs
    else:
        is_on_device = bool(others)
    if others and (not is_on_device or name.startswith(_READING) or _has_mask_as_index(name, args)):
        _note(name)
    hosts = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OtherTensor) and leaf.dim()]
    if others and hosts and "copy" not in name and not name.startswith("index"):
        raise RuntimeError(f"{func} mixes tensors on the device with a tensor on the CPU of shape {hosts[0].shape}")
    result = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    if not is_on_device:
        return result
    given = {id(other.on_cpu): other for other in others}  # operations in place return their argument
    return tree_map(
        lambda leaf: given[id(leaf)] if id(leaf) in given else _on_device(leaf) if isinstance(leaf, Tensor) else leaf,
        result,
    )


def on_cpu(leaf: Any) -> Any:
    """Returns the values of a tensor on the device as a tensor on the CPU, and anything else as it is."""
    return leaf.on_cpu if isinstance(leaf, OtherTensor) else leaf


def _on_device(tensor: Tensor) -> OtherTensor:
    return tensor if isinstance(tensor, OtherTensor) else OtherTensor(tensor)


def _has_mask_as_index(name: str, args: Any) -> bool:
    """A GPU must count the elements of a mask before it can index with it."""
    return name.startswith(("index.", "index_put")) and any(x is not None and x.dtype is torch.bool for x in args[1])


def _note(name: str) -> None:
    calls = [frame for frame in traceback.extract_stack() if "/seqtk/" in frame.filename]
    where = f" in {calls[-1].filename.rpartition('/seqtk/')[2]}, {calls[-1].name}" if calls else ""
    reads.append(f"{name.partition('.')[0]}{where}")


class _Module(backend_registration._DummyBackendModule):
    """What torch expects of `torch.<name of the device>`. The device shares the CPU's random numbers."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)


_LIBRARY, _FALLBACK = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return OtherTensor(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return OtherTensor(torch.empty(size, dtype=dtype))


def _copy(source: Tensor, destination: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(destination, OtherTensor):
        _note("copy")
    on_cpu(destination).copy_(on_cpu(source))
    return destination


def _with_autocast(operator: Callable[..., Any], dtype: torch.dtype | None) -> Callable[..., Any]:
    """Returns an operation that first casts its floating point arguments to `dtype`, or to autocast's dtype."""

    def cast(leaf: Any) -> Any:
        has_cast = isinstance(leaf, Tensor) and leaf.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return leaf.to(dtype or torch.get_autocast_dtype(NAME)) if has_cast else leaf

    def run(*args: Any, **kwargs: Any) -> Any:
        without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(without):
            return operator(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run
