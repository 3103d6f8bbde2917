"""Precision under autocast, and positions cut into blocks.

B batch, T length, D width, N blocks of C positions.
"""

import torch
from torch import Tensor
from torch.nn import functional


def to_fp32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is wider: a long sum in bfloat16 loses terms that are small beside it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in the dtype that a linear map gives under autocast: for layers that do not end in one."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which products have the precision of their operands. `x` says on which device."""
    return torch.autocast(x.device.type, enabled=False)


def in_blocks(x_BT: Tensor, size: int, *, dim: int = 1, fill: float = 0) -> Tensor:
    """x_BNC (and any dimensions after T): the positions, dimension `dim`, in blocks of `size`; `fill` after the end."""
    dim %= x_BT.dim()
    missing = -x_BT.shape[dim] % size
    if missing:  # pad() copies even if there is nothing to add
        x_BT = functional.pad(x_BT, (0, 0) * (x_BT.dim() - dim - 1) + (0, missing), value=fill)
    return x_BT.unflatten(dim, (-1, size))  # type: ignore[no-any-return, no-untyped-call]


def split_heads(x_BTD: Tensor, head_dim: int) -> Tensor:
    """x_BHTE, heads of width E = `head_dim`, a view."""
    return x_BTD.view(*x_BTD.shape[:2], -1, head_dim).transpose(1, 2)


def join_heads(x_BHTE: Tensor) -> Tensor:
    """x_BTD, the heads side by side."""
    return x_BHTE.transpose(1, 2).flatten(2)
