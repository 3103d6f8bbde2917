"""Which dtype to compute in under autocast: sums over positions in float32 or wider, outputs as autocast's own."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if wider: a long sum in bfloat16 loses what is small beside it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def as_autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that a linear map would give under autocast: for layers that do not end in one."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
