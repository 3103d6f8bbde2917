"""Long inputs, some heads at a time, with nothing kept for the backward pass but what the layer was given.

What lies between a layer's input and its output projection (queries, features of keys, copies of neighbours, running
sums) is many times as large as the input itself. Heads do not see each other there. So a few of them go through at a
time, and what they left is made again in the backward pass, as torch's fused dot-product attention makes its weights
again, here with the projections, too.

B batch, T length, D width of all heads side by side, d of some of them, I width of an input.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LONG = 2048
"""Positions from which memory is worth the time to make everything twice."""

PIECE = {"cpu": 2**18, "cuda": 2**24}
"""Numbers in a projection of some heads, about: enough to keep a device busy, few enough to be little beside the rest.

One head at least.
"""

OfHeads = Callable[..., Tensor]
"""Called with a slice of range(heads) and what the sources give for them, BTd; gives those heads' outputs, BTd."""


class Projected(NamedTuple):
    """A source: the linear map of an input, its outputs the heads side by side; or the input, if that has them."""

    x_BTI: Tensor
    linear: nn.Linear | None


def by_heads(
    function: OfHeads, *sources: Tensor | Projected, heads: int, through: Sequence[Tensor] = (), is_random: bool = False
) -> Tensor:
    """y_BTD = `function` of all heads of the sources: some at a time, if one of the sources is LONG.

    Sources are made by a linear map or are given, x_BTD; lengths and widths may differ from one to the other. `through`
    names what else the function reads and has a gradient: parameters, tensors that all heads share. With `is_random`,
    when the function would not give the same again, everything goes through at once and is kept.
    """
    given = [s if isinstance(s, Projected) else Projected(s, None) for s in sources]
    if is_random or torch.compiler.is_compiling() or max(x_BTI.shape[1] for x_BTI, _ in given) < LONG:
        whole = [x_BTI if linear is None else linear(x_BTI) for x_BTI, linear in given]
        return function(slice(0, heads), *whole)
    tensors: list[Tensor] = []

    def place(tensor: Tensor | None) -> int | None:
        """Its index among the tensors, each of which stands there once and so gets one gradient."""
        if tensor is None:
            return None
        for index, known in enumerate(tensors):
            if known is tensor:
                return index
        tensors.append(tensor)
        return len(tensors) - 1

    plan = []
    for x_BTI, linear in given:
        weight, bias = (None, None) if linear is None else (linear.weight, linear.bias)
        plan.append((place(x_BTI), place(weight), place(bias)))
    work = _Work(function, heads, _pieces(given, heads), plan, through)
    y_BTD: Tensor = _ByHeads.apply(work, *tensors, *through)  # type: ignore[no-untyped-call]
    return y_BTD


def _pieces(given: Sequence[Projected], heads: int) -> list[slice]:
    """As many heads at once as make a PIECE, at least one, in groups of nearly the same size."""
    largest = max(x.numel() if linear is None else x[..., 0].numel() * linear.out_features for x, linear in given)
    groups = min(heads, -(-largest // PIECE.get(given[0].x_BTI.device.type, largest)))
    size = -(-heads // groups)
    return [slice(first, min(first + size, heads)) for first in range(0, heads, size)]


def _of(x: Tensor, some: slice, heads: int, *, dim: int = -1) -> Tensor:
    """The part of some heads."""
    width = x.shape[dim] // heads
    return x.narrow(dim, some.start * width, (some.stop - some.start) * width)


class _Work(NamedTuple):
    """What is to be done with the tensors."""

    function: OfHeads
    heads: int
    pieces: list[slice]
    plan: list[tuple[Any, Any, Any]]
    """Of each source where the tensors have its input, its weight and its bias, if any."""
    through: Sequence[Tensor]

    def cast(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What is projected, and by what, in the type that autocast asks for."""
        device = tensors[0].device.type
        if not torch.is_autocast_enabled(device):
            return list(tensors)
        dtype, projected = (
            torch.get_autocast_dtype(device),
            {i for place in self.plan if place[1:] != (None, None) for i in place},
        )
        return [x.to(dtype) if i in projected and x.dtype is torch.float32 else x for i, x in enumerate(tensors)]

    def sources(self, tensors: Sequence[Tensor], some: slice) -> list[Tensor]:
        """What the function is given for some heads."""
        made = []
        for x, weight, bias in self.plan:
            if weight is None:
                made.append(_of(tensors[x], some, self.heads))
            else:
                bias_D = None if bias is None else _of(tensors[bias], some, self.heads)
                made.append(functional.linear(tensors[x], _of(tensors[weight], some, self.heads, dim=0), bias_D))
        return made

    def add_gradients(
        self, found: Sequence[Tensor], some: slice, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> None:
        """Add the gradients of some heads' sources to those of what they were made of."""
        for new, (x, weight, bias) in zip(found, self.plan, strict=True):
            x_grad = grads[x]
            if weight is None:
                if x_grad is not None:
                    _of(x_grad, some, self.heads).add_(new)
                continue
            rows = new.flatten(0, -2)
            if x_grad is not None:
                weight_part = _of(tensors[weight], some, self.heads, dim=0)
                flat = x_grad.view(-1, x_grad.shape[-1])
                flat.addmm_(rows, weight_part) if flat.dtype == rows.dtype else flat.add_(rows @ weight_part)
            if (weight_grad := grads[weight]) is not None:
                _of(weight_grad, some, self.heads, dim=0).add_(rows.T @ tensors[x].flatten(0, -2))
            if bias is not None and (bias_grad := grads[bias]) is not None:
                _of(bias_grad, some, self.heads).add_(rows.sum(0))


class _ByHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor) -> Tensor:
        given = tensors[: len(tensors) - len(work.through)]
        ctx.save_for_backward(*given)
        device = given[0].device.type
        ctx.work, ctx.autocast = work, (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        cast = work.cast(given)
        y_BTD: Tensor | None = None
        for some in work.pieces:
            y_BTd = work.function(some, *work.sources(cast, some))
            if y_BTD is None:
                y_BTD = y_BTd.new_empty(*y_BTd.shape[:-1], y_BTd.shape[-1] // (some.stop - some.start) * work.heads)
            _of(y_BTD, some, work.heads).copy_(y_BTd)
        assert y_BTD is not None
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        work: _Work = ctx.work
        given: tuple[Tensor, ...] = ctx.saved_tensors
        needed = zip((*given, *work.through), ctx.needs_input_grad[1:], strict=True)
        grads = [x.new_zeros(x.shape) if need else None for x, need in needed]
        shared = [(x, grad) for x, grad in zip(work.through, grads[len(given) :], strict=True) if grad is not None]
        device, dtype, enabled = ctx.autocast
        with torch.autocast(device, dtype, enabled):
            cast = work.cast(given)
            for some in work.pieces:
                sources = [source.detach().requires_grad_() for source in work.sources(cast, some)]
                with torch.enable_grad():
                    y_BTd = work.function(some, *sources)
                wanted = [*sources, *(x for x, _ in shared)]
                found = torch.autograd.grad(y_BTd, wanted, _of(grad_BTD, some, work.heads), materialize_grads=True)
                del y_BTd, wanted
                with torch.autocast(device, enabled=False):
                    work.add_gradients(found[: len(sources)], some, cast, grads)
                for (_, total), new in zip(shared, found[len(sources) :], strict=True):
                    total += new
        return None, *grads
