"""Linear maps of many rows, y = x Wᵀ + b. In bfloat16 on a CPU, the rows are split into pieces of a few fixed sizes.

Where it runs: in pieces for bfloat16 on a CPU, otherwise as one product of torch.

torch multiplies bfloat16 matrices on a CPU with oneDNN, which generates code for each new size of a product and keeps
it: 5 to 15 ms and up to 2 MiB each. Batches of sentences have a new number of rows in nearly every update, so that a
small translation model had 30 new sizes per update, and the memory of long runs grew by gigabytes. Here one product
computes most of the rows (`whole_rows`), and a second product the remaining rows, rounded up to a multiple of STEP, so
that a run has few sizes. The remaining rows are at most a sixteenth of all rows, or 64 rows.

N rows, I inputs, O outputs, P remaining rows with padding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode

STEP = 64
"""The smallest number of rows of a product."""


def naive(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Computes the linear map as one matrix product."""
    return functional.linear(x_NI, weight_OI, bias_O)


def row_linear(x_XI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Returns y_XO = x Wᵀ + b, for any dimensions X. If computed in pieces, it supports first derivatives only."""
    if naive_mode() or torch.compiler.is_compiling() or not is_in_pieces(weight_OI):
        return naive(x_XI, weight_OI, bias_O)
    # Two dimensions, because torch would multiply others as a batch of products with one more size for each length.
    x_NI = x_XI.reshape(-1, x_XI.shape[-1]).to(weight_OI.dtype)
    if whole_rows(len(x_NI)) == len(x_NI):
        y_NO = naive(x_NI, weight_OI, bias_O)
    else:
        y_NO = _RowLinear.apply(x_NI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return y_NO.view(*x_XI.shape[:-1], len(weight_OI))


def is_in_pieces(weight: Tensor) -> bool:
    """Returns True if linear maps with this weight matrix are computed in pieces of rows (bfloat16 on a CPU)."""
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu"


@torch.library.custom_op("seqtk::row_product", mutates_args=())
def row_product(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Returns x W + b, computed in at most two pieces of rows (see the top of the file).

    Autograd cannot differentiate it. `_RowLinear` defines the gradient.
    """
    rows, whole = len(x_NI), whole_rows(len(x_NI))
    if whole == rows:
        return _product(x_NI, weight_IO, bias_O)
    rest = -(-(rows - whole) // STEP) * STEP
    if rest > rows:
        return _product(_padded(x_NI), weight_IO, bias_O)[:rows]
    y_NO = x_NI.new_empty(rows, weight_IO.shape[1])
    if whole:
        _product(x_NI[:whole], weight_IO, bias_O, out=y_NO[:whole])
    _product(x_NI[-rest:], weight_IO, bias_O, out=y_NO[-rest:])  # computes some rows again, instead of padding
    return y_NO


@torch.library.custom_op("seqtk::row_outer", mutates_args=())
def row_outer(y_NO: Tensor, x_NI: Tensor) -> Tensor:
    """Returns yᵀ x, computed in pieces of rows: the gradient of the weights if y is the gradient of the outputs."""
    whole = whole_rows(len(x_NI))
    if whole == len(x_NI):
        return y_NO.T @ x_NI
    rest_OI = _padded(y_NO[whole:]).T @ _padded(x_NI[whole:])
    return rest_OI.addmm_(y_NO[:whole].T, x_NI[:whole]) if whole else rest_OI


def whole_rows(rows: int) -> int:
    """Returns the number of rows in the first of two products: at most 16 values between consecutive powers of 2."""
    return rows - rows % max(STEP, (1 << rows.bit_length()) // 32)


def _product(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    if bias_O is None:
        return torch.mm(x_NI, weight_IO, out=out)
    return torch.addmm(bias_O, x_NI, weight_IO, out=out)


def _padded(x_NI: Tensor) -> Tensor:
    """Returns x_PI, the rows padded with zeros to a multiple of STEP."""
    missing = -len(x_NI) % STEP
    return functional.pad(x_NI, (0, 0, 0, missing)) if missing else x_NI


class _RowLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        # Saves the same tensors as torch's linear map, which a recomputed block may call in the backward pass.
        ctx.save_for_backward(x_NI, weight_OI.T)
        y_NO: Tensor = row_product(x_NI, weight_OI.T, bias_O)
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_IO = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            row_product(grad_NO, weight_IO.T) if need_x else None,
            row_outer(grad_NO, x_NI) if need_weight else None,
            grad_NO.sum(0) if need_bias else None,
        )
