"""Linear maps that use shared low-precision copies of their weights, and several maps of one input as one product.

O outputs, I inputs, X any dimensions before the last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.ops.row_linear import row_linear
from seqtk.ops.tensors import to_fp32


class Copies(NamedTuple):
    """The concatenated weights of several linear maps of one input, in autocast's dtype."""

    weight_OI: Tensor
    bias_O: Tensor | None
    maps: tuple["Linear", ...]


class Linear(nn.Linear):
    """nn.Linear that uses `copies` of its weights under autocast, if `copies` is set.

    `seqtk.training.precision` creates the copies once per update. Without copies, autocast converts the weights at each
    use.
    """

    copies: Copies | None = None
    first_row: int = 0
    """The index of the first row of this map in `copies`."""

    def forward(self, x_XI: Tensor) -> Tensor:
        """Returns y_XO = x Wᵀ + b."""
        if self.copies is None or not _uses_copies(x_XI):
            return super().forward(x_XI)
        rows = slice(self.first_row, self.first_row + self.out_features)
        weight_OI, bias_O, maps = self.copies
        if len(maps) > 1:
            weight_OI, bias_O = weight_OI[rows], None if bias_O is None else bias_O[rows]
        return row_linear(x_XI, weight_OI, bias_O)


def xavier_linear(inputs: int, outputs: int, *, bias: bool, gain: float = 1.0) -> Linear:
    """Returns a linear map with Xavier-uniform weights and, if `bias` is True, a bias of zeros."""
    linear = Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight, gain=gain)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def project(x_XI: Tensor, maps: Sequence[nn.Module], *, wide: bool = False) -> list[Tensor]:
    """Applies several linear maps to x. Returns one y_XO per map, in float32 or wider if `wide`.

    The maps are computed as one product unless one of them has a hook.
    """
    if len(maps) == 1 or not _can_join(maps):
        return [to_fp32(each(x_XI)) if wide else each(x_XI) for each in maps]
    y_XO = joint_product(x_XI, maps)
    return list(torch.split(to_fp32(y_XO) if wide else y_XO, [each.out_features for each in maps], dim=-1))  # type: ignore[misc]


def joint_product(x_XI: Tensor, maps: Sequence[nn.Module]) -> Tensor:
    """Returns the outputs y_XO of several linear maps of x, concatenated along O."""
    if not _can_join(maps):
        return torch.cat([each(x_XI) for each in maps], dim=-1)
    linears: list[Linear] = list(maps)  # type: ignore[arg-type]
    copies = linears[0].copies
    if copies is not None and _uses_copies(x_XI) and len(copies.maps) == len(maps) and copies.maps == tuple(linears):
        return row_linear(x_XI, copies.weight_OI, copies.bias_O)
    weight_OI = torch.cat([each.weight for each in linears])
    bias_O = None if linears[0].bias is None else torch.cat([each.bias for each in linears])
    return functional.linear(x_XI, weight_OI, bias_O)


def _can_join(maps: Sequence[nn.Module]) -> bool:
    return all(type(each) is Linear and not has_hooks(each) for each in maps)


def has_hooks(module: nn.Module) -> bool:
    """Returns True if a module has hooks. Hooks run only if the module itself is called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _uses_copies(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type) and not torch.compiler.is_compiling()
