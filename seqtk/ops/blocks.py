"""Positions in blocks of one size, and beside each block its neighbours.

B batch, T length, N blocks of C positions, K positions of a block and its neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional


def in_blocks(x_BT: Tensor, size: int, *, dim: int = 1, fill: float = 0) -> Tensor:
    """x_BNC (and any dimensions after T): the positions, dimension `dim`, in blocks of `size`; `fill` after the end."""
    dim %= x_BT.dim()
    missing = -x_BT.shape[dim] % size
    if missing:  # torch would copy it even if nothing were missing
        x_BT = functional.pad(x_BT, (0, 0) * (x_BT.dim() - dim - 1) + (0, missing), value=fill)
    return x_BT.unflatten(dim, (-1, size))  # type: ignore[no-any-return, no-untyped-call]


def with_neighbours(x_BNC: Tensor, *, before: int, after: int, fill: float = 0) -> Tensor:
    """x_BNK (and any dimensions after C): each block between its neighbours, `fill` where there are none."""
    blocks = x_BNC.shape[1]
    padded = functional.pad(x_BNC, (0, 0) * (x_BNC.dim() - 2) + (before, after), value=fill)
    return torch.cat([padded[:, start : start + blocks] for start in range(before + 1 + after)], dim=2)
