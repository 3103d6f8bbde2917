"""Activation checkpointing over heads: computes a few heads at a time and keeps only the layer's inputs.

Between its input and its output projection, a layer creates many tensors as large as the input (queries, features of
keys, copies of neighbors, running sums). Heads do not interact there. So the layer computes a few heads at a time, and
the backward pass computes them again, together with their projections.

Where it runs: from MIN_LENGTH positions on, on every device, unless the function draws random numbers or torch.compile
traces it; CHUNK_ELEMENTS determines how many heads are computed together. The naive form computes all heads at once.

Measured against torch.utils.checkpoint over the same groups of heads (width 512, 8 heads, one CPU thread, forward and
backward): causal linear attention at 4,096 positions peaks at 89 MiB, not 126, in 0.66 s, not 0.68; a sliding window at
91 MiB, not 128, in 0.48 s, not 0.56; linear attention at 16,384 positions at 215 MiB, not 249, in 2.4 s, not 2.7.
Without recomputation these take 131, 137 and 493 MiB, and 0.47, 0.37 and 1.9 s. It needs less memory than
torch.utils.checkpoint because it adds the gradients of weights and inputs in place.

B batch, T length, D width of all heads side by side, d width of a slice of them, I width of an input.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode

MIN_LENGTH = 2048
"""Inputs of at least this length are computed twice, to save memory."""

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""The approximate number of elements in the projection of a slice of heads (at least one head), enough to use a device
fully."""

OfHeads = Callable[..., Tensor]
"""Function from (head_slice, *sources_BTd) to the outputs y_BTd of these heads."""


class LazyProjection(NamedTuple):
    """A source of heads: a linear map of an input, or the input itself if the map is None."""

    x_BTI: Tensor
    linear: nn.Linear | None


def naive(function: OfHeads, *sources: Tensor | LazyProjection, heads: int) -> Tensor:
    """Computes the function for all heads at once."""
    given = [source if isinstance(source, LazyProjection) else LazyProjection(source, None) for source in sources]
    return function(slice(0, heads), *(x_BTI if linear is None else linear(x_BTI) for x_BTI, linear in given))


def checkpoint_over_heads(
    function: OfHeads,
    *sources: Tensor | LazyProjection,
    heads: int,
    extra_params: Sequence[Tensor] = (),
    is_random: bool = False,
) -> Tensor:
    """Returns y_BTD, the output of `function` for all heads. Long inputs are computed for a few heads at a time.

    Inputs are long from MIN_LENGTH positions on. Sources are projections or tensors x_BTD; lengths and widths may
    differ. `extra_params` lists every other tensor that the function reads and that requires a gradient. `is_random`
    means that a second call would give a different result; then all heads are computed at once without checkpointing.
    """
    given = [source if isinstance(source, LazyProjection) else LazyProjection(source, None) for source in sources]
    is_short = max(x_BTI.shape[1] for x_BTI, _ in given) < MIN_LENGTH
    if is_short or is_random or naive_mode() or torch.compiler.is_compiling():
        return naive(function, *given, heads=heads)
    tensors: list[Tensor] = []

    def index_of(tensor: Tensor | None) -> int | None:
        """Returns the index of `tensor` in the list of distinct tensors, so that each has one gradient."""
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
        plan.append((index_of(x_BTI), index_of(weight), index_of(bias)))
    work = _Work(function, heads, _head_slices(given, heads), plan, extra_params)
    y_BTD: Tensor = _CheckpointOverHeads.apply(work, *tensors, *extra_params)  # type: ignore[no-untyped-call]
    return y_BTD


def _head_slices(given: Sequence[LazyProjection], heads: int) -> list[slice]:
    """Returns slices of nearly equal numbers of heads, each of about CHUNK_ELEMENTS and at least one head."""
    largest = max(x.numel() if linear is None else x[..., 0].numel() * linear.out_features for x, linear in given)
    groups = min(heads, -(-largest // CHUNK_ELEMENTS.get(given[0].x_BTI.device.type, largest)))
    size = -(-heads // groups)
    return [slice(first, min(first + size, heads)) for first in range(0, heads, size)]


def _heads_of(x: Tensor, head_slice: slice, heads: int, *, dim: int = -1) -> Tensor:
    """Returns a view of the part of `x` that belongs to the heads in `head_slice`."""
    width = x.shape[dim] // heads
    return x.narrow(dim, head_slice.start * width, (head_slice.stop - head_slice.start) * width)


class _Work(NamedTuple):
    """The arguments of `_CheckpointOverHeads` without a gradient: the function, and which tensors each source uses."""

    function: OfHeads
    heads: int
    head_slices: list[slice]
    plan: list[tuple[Any, Any, Any]]
    """For each source, the indices of its input, weight and bias in the list of tensors."""
    extra_params: Sequence[Tensor]

    def cast(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the tensors, with the inputs and weights of projections converted to autocast's dtype."""
        device = tensors[0].device.type
        if not torch.is_autocast_enabled(device):
            return list(tensors)
        dtype, projected = (
            torch.get_autocast_dtype(device),
            {i for place in self.plan if place[1:] != (None, None) for i in place},
        )
        return [x.to(dtype) if i in projected and x.dtype is torch.float32 else x for i, x in enumerate(tensors)]

    def sources(self, tensors: Sequence[Tensor], head_slice: slice) -> list[Tensor]:
        """Returns the arguments of the function for the heads in `head_slice`."""
        made = []
        for x, weight, bias in self.plan:
            if weight is None:
                made.append(_heads_of(tensors[x], head_slice, self.heads))
            else:
                bias_D = None if bias is None else _heads_of(tensors[bias], head_slice, self.heads)
                made.append(
                    functional.linear(tensors[x], _heads_of(tensors[weight], head_slice, self.heads, dim=0), bias_D)
                )
        return made

    def add_gradients(
        self, found: Sequence[Tensor], head_slice: slice, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> None:
        """Adds the gradients of the sources of some heads to the gradients of the inputs, weights and biases."""
        for new, (x, weight, bias) in zip(found, self.plan, strict=True):
            x_grad = grads[x]
            if weight is None:
                if x_grad is not None:
                    _heads_of(x_grad, head_slice, self.heads).add_(new)
                continue
            rows = new.flatten(0, -2)
            if x_grad is not None:
                weight_part = _heads_of(tensors[weight], head_slice, self.heads, dim=0)
                flat = x_grad.view(-1, x_grad.shape[-1])
                flat.addmm_(rows, weight_part) if flat.dtype == rows.dtype else flat.add_(rows @ weight_part)
            if (weight_grad := grads[weight]) is not None:
                _heads_of(weight_grad, head_slice, self.heads, dim=0).add_(rows.T @ tensors[x].flatten(0, -2))
            if bias is not None and (bias_grad := grads[bias]) is not None:
                _heads_of(bias_grad, head_slice, self.heads).add_(rows.sum(0))


class _CheckpointOverHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor) -> Tensor:
        given = tensors[: len(tensors) - len(work.extra_params)]
        ctx.save_for_backward(*given)
        device = given[0].device.type
        ctx.work, ctx.autocast = work, (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        cast = work.cast(given)
        y_BTD: Tensor | None = None
        for head_slice in work.head_slices:
            y_BTd = work.function(head_slice, *work.sources(cast, head_slice))
            if y_BTD is None:
                y_BTD = y_BTd.new_empty(
                    *y_BTd.shape[:-1], y_BTd.shape[-1] // (head_slice.stop - head_slice.start) * work.heads
                )
            _heads_of(y_BTD, head_slice, work.heads).copy_(y_BTd)
        assert y_BTD is not None
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        work: _Work = ctx.work
        given: tuple[Tensor, ...] = ctx.saved_tensors
        needed = zip((*given, *work.extra_params), ctx.needs_input_grad[1:], strict=True)
        grads = [x.new_zeros(x.shape) if need else None for x, need in needed]
        shared = [(x, grad) for x, grad in zip(work.extra_params, grads[len(given) :], strict=True) if grad is not None]
        device, dtype, enabled = ctx.autocast
        with torch.autocast(device, dtype, enabled):
            cast = work.cast(given)
            for head_slice in work.head_slices:
                sources = [source.detach().requires_grad_() for source in work.sources(cast, head_slice)]
                with torch.enable_grad():
                    y_BTd = work.function(head_slice, *sources)
                wanted = [*sources, *(x for x, _ in shared)]
                found = torch.autograd.grad(
                    y_BTd, wanted, _heads_of(grad_BTD, head_slice, work.heads), materialize_grads=True
                )
                del y_BTd, wanted
                with torch.autocast(device, enabled=False):
                    work.add_gradients(found[: len(sources)], head_slice, cast, grads)
                for (_, total), new in zip(shared, found[len(sources) :], strict=True):
                    total += new
        return None, *grads
