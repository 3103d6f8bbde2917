"""Helpers for tensors: precision under autocast, padding, splitting into blocks and heads.

B batch, T length, D width, H heads, E width of a head, N blocks of C positions.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_found: dict[str, tuple["weakref.ref[Tensor]", int | None, Tensor]] = {}


def once_for(name: str, source: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Returns the result of `compute`, a function of `source`, and caches it.

    The next call with the same name and the same, unchanged `source` returns the cached result. So masks that all
    layers of a model share are computed only once. Changes of tensors made in inference mode are not detected.
    """
    if torch.compiler.is_compiling():
        return compute()
    version = None if source.is_inference() else source._version
    if name in _found:
        of, seen, result = _found[name]
        if of() is source and seen == version and result.is_inference() == torch.is_inference_mode_enabled():
            return result
    result = compute()
    _found[name] = weakref.ref(source), version, result
    return result


def to_fp32(x: Tensor) -> Tensor:
    """Returns `x` in float32, or unchanged if it is wider. Long sums in bfloat16 lose small terms."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def to_autocast_dtype(x: Tensor) -> Tensor:
    """Returns `x` in autocast's dtype. A layer whose last operation is not a linear map must return this dtype."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def without_autocast(x: Tensor) -> torch.autocast:
    """Returns a context that disables autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


def in_blocks(x_BT: Tensor, size: int, *, dim: int = 1, fill: float = 0) -> Tensor:
    """Splits dimension `dim` into blocks of `size`, padded with `fill`: x_BT becomes x_BNC. Keeps other dimensions."""
    dim %= x_BT.dim()
    missing = -x_BT.shape[dim] % size
    if missing:  # pad() copies even if the padding is empty
        x_BT = functional.pad(x_BT, (0, 0) * (x_BT.dim() - dim - 1) + (0, missing), value=fill)
    return x_BT.unflatten(dim, (-1, size))  # type: ignore[no-any-return, no-untyped-call]


def padding_or_zeros(x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
    """Returns the padding mask, BT. Without padding, all elements are False."""
    return torch.zeros_like(x_BTD[..., 0], dtype=torch.bool) if pad_BT is None else pad_BT


def zero_padding(x: Tensor, pad_BT: Tensor | None) -> Tensor:
    """Returns x_BTD or x_BHTE with zeros at padding."""
    if pad_BT is None:
        return x
    return x.masked_fill(pad_BT[..., None] if x.dim() == 3 else pad_BT[:, None, :, None], 0)


def split_heads(x_BTD: Tensor, head_dim: int) -> Tensor:
    """Returns a view x_BHTE of heads of width E = `head_dim`."""
    return x_BTD.view(*x_BTD.shape[:2], x_BTD.shape[2] // head_dim, head_dim).transpose(1, 2)


def join_heads(x_BHTE: Tensor) -> Tensor:
    """Returns x_BTD, the heads concatenated."""
    return x_BHTE.transpose(1, 2).flatten(2)
