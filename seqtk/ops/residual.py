"""Dropout, residual sum and optional layer norm, norm(x + dropout(y)), as one operation with one backward pass.

Where it runs: the joint form runs in eager training with dropout. Compiled code fuses the plain form, and without
dropout there is little to fuse. The joint form scales the kept elements in the same operator as the sum, and applies
dropout's gradient directly to the gradient of the norm. It has ten operators; the plain form has fifteen.

D width, X any dimensions before it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.dropout import drop, drop_again, dropout, keep_scale, scaled


def naive(
    x_XD: Tensor, y_XD: Tensor, *, rate: float, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """Computes dropout, the sum and the norm as separate operations."""
    sum_XD = x_XD + dropout(y_XD, rate)
    return sum_XD if weight is None else functional.layer_norm(sum_XD, weight.shape, weight, bias, eps)


def add_residual(
    x_XD: Tensor, y_XD: Tensor, *, rate: float, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """Returns layer_norm(x + dropout(y)), or x + dropout(y) if `weight` is None.

    The result has the wider dtype of x and y. It supports first derivatives only.
    """
    if naive_mode() or not rate or torch.compiler.is_compiling():
        return naive(x_XD, y_XD, rate=rate, weight=weight, bias=bias, eps=eps)
    return _Residual.apply(x_XD, y_XD, weight, bias, rate, eps)  # type: ignore[no-any-return, no-untyped-call]


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_XD: Tensor, y_XD: Tensor, weight: Tensor | None, bias: Tensor | None, rate: float, eps: float
    ) -> Tensor:
        kept_XD, chosen = drop(y_XD, rate)
        sum_XD = torch.add(x_XD, kept_XD, alpha=keep_scale(rate, y_XD.device))
        ctx.rate, ctx.dtypes = rate, (x_XD.dtype, y_XD.dtype)
        if weight is None:
            ctx.save_for_backward(chosen)
            return sum_XD
        normed_XD, mean, deviation = torch.native_layer_norm(sum_XD, weight.shape, weight, bias, eps)
        ctx.save_for_backward(chosen, sum_XD, mean, deviation, weight, bias)
        return normed_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[Tensor | None, ...]:
        chosen, *norm = ctx.saved_tensors
        grad_weight = grad_bias = None
        if norm:
            sum_XD, mean, deviation, weight, bias = norm
            needed = [True, ctx.needs_input_grad[2], bias is not None and ctx.needs_input_grad[3]]
            # The wider dtype is the one in which autocast ran the norm. torch.promote_types would dispatch an operator.
            dtype = max(sum_XD.dtype, weight.dtype, key=lambda each: each.itemsize)
            norm = [tensor if tensor is None else tensor.to(dtype) for tensor in (grad_XD, sum_XD, weight, bias)]
            grad_XD, sum_XD, weight, bias = norm
            grad_XD, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
                grad_XD, sum_XD, weight.shape, mean, deviation, weight, bias, needed
            )
        x_dtype, y_dtype = ctx.dtypes
        grad_y_XD = scaled(drop_again(grad_XD.to(y_dtype), chosen, ctx.rate), ctx.rate)
        return grad_XD.to(x_dtype), grad_y_XD, grad_weight, grad_bias, None, None
