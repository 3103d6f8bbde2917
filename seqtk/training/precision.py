"""Copies of weights in autocast's precision. They are converted once per update instead of at each use.

Autocast converts each weight in each micro-batch, and each gradient back: two kernels for every matrix and bias. Here,
one kernel converts the weights of all linear layers after an optimizer step, and one kernel converts all gradients of a
group of blocks.
Layers with the same input, such as the projections to queries, keys and values, share one copy, so that they are
computed as one matrix product.

Autocast is still enabled, for activations and the weights of other modules.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook

from seqtk.attention import Attention
from seqtk.modules.linear import Copies, Linear

_BLOCK = re.compile(r"(.*?)\.(\d+)\.")
BLOCKS_AT_ONCE = 2
"""The number of blocks whose gradients are converted together, when all of them are complete."""


class WeightCopies:
    """Copies of the weights of all linear layers of a model, which the layers use inside `in_use()`.

    Args:
        model: The model. Its parameters may change, and may move to another device.
        dtype: The precision of the copies.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        layers = [layer for layer in model.modules() if isinstance(layer, Attention)]
        joint = [maps for layer in layers for maps in layer.joint_maps() if all(type(each) is Linear for each in maps)]
        first = {id(maps[0]): maps for maps in joint}
        others = {id(each) for maps in joint for each in maps[1:]}
        blocks: dict[str, list[tuple[Linear, ...]]] = {}
        for name, module in model.named_modules():
            if type(module) is Linear and id(module) not in others:
                found = _BLOCK.match(name)
                block = f"{found[1]} {int(found[2]) // BLOCKS_AT_ONCE}" if found else ""
                blocks.setdefault(block, []).append(first.get(id(module), (module,)))
        self._blocks = list(blocks.values())
        self._seen: list[tuple[int, int, int]] = []
        self._counter = _step_counter()
        self._steps = 0
        self._buffers: list[list[Tensor]] = []

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context manager in which the linear layers use the copies of their weights."""
        self._update()
        for maps_of_block, buffers in zip(self._blocks, self._buffers, strict=True):
            outputs = iter(_Copies.apply(buffers, *_parameters(maps_of_block)))  # type: ignore[no-untyped-call]
            for maps in maps_of_block:
                copies = Copies(next(outputs), None if maps[0].bias is None else next(outputs), maps)
                for each, first_row in zip(maps, _first_rows(maps), strict=True):
                    each.copies, each.first_row = copies, first_row
        try:
            yield
        finally:
            for maps_of_block in self._blocks:
                for maps in maps_of_block:
                    for each in maps:
                        each.copies = None

    def _update(self) -> None:
        """Copies the weights if any of them has changed since the last call."""
        parameters = [parameter for maps_of_block in self._blocks for parameter in _parameters(maps_of_block)]
        seen = [(id(parameter), parameter.data_ptr(), parameter._version) for parameter in parameters]
        if not parameters or (seen, self._counter.steps) == (self._seen, self._steps):
            return
        device = parameters[0].device
        if [each[:2] for each in seen] != [each[:2] for each in self._seen]:
            self._buffers = [
                [
                    torch.empty(sum(len(each) for each in group), *group[0].shape[1:], dtype=self._dtype, device=device)
                    for group in _groups(maps_of_block)
                ]
                for maps_of_block in self._blocks
            ]
        parts: list[Tensor] = []
        for maps_of_block, buffers in zip(self._blocks, self._buffers, strict=True):
            for group, buffer in zip(_groups(maps_of_block), buffers, strict=True):
                parts += torch.split(buffer, [len(each) for each in group])
        with torch.no_grad():
            torch._foreach_copy_(parts, parameters)
        self._seen, self._steps = seen, self._counter.steps


class _StepCounter:
    """Counts the steps of all optimizers, to detect changed weights: fused optimizers keep `Tensor._version`."""

    def __init__(self) -> None:
        self.steps = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.steps += 1


_step_counter = cache(_StepCounter)


def _groups(maps_of_block: list[tuple[Linear, ...]]) -> Iterator[list[Tensor]]:
    """Yields lists of parameters that share a buffer: the weights of layers with the same input, then their biases."""
    for maps in maps_of_block:
        yield [each.weight for each in maps]
        if maps[0].bias is not None:
            yield [each.bias for each in maps]


def _first_rows(maps: tuple[Linear, ...]) -> list[int]:
    """Returns the index of the first row of each layer in the buffer that the layers share."""
    return list(accumulate([each.out_features for each in maps[:-1]], initial=0))


def _parameters(maps_of_block: list[tuple[Linear, ...]]) -> list[Tensor]:
    return [parameter for group in _groups(maps_of_block) for parameter in group]


class _Copies(torch.autograd.Function):
    """Returns the existing copies of the weights. The backward pass converts their gradients to the weights' dtype."""

    @staticmethod
    def forward(ctx: Any, buffers: list[Tensor], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shapes, ctx.dtype = [parameter.shape for parameter in parameters], parameters[0].dtype
        ctx.rows = [len(buffer) for buffer in buffers]
        return tuple(buffer.detach() for buffer in buffers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, *[None] * len(ctx.shapes)
        flat = torch.empty(sum(grad.numel() for grad in given), dtype=ctx.dtype, device=given[0].device)
        pieces = torch.split(flat, [grad.numel() for grad in given])
        targets = [piece.view(grad.shape) for piece, grad in zip(pieces, given, strict=True)]
        torch._foreach_copy_(targets, given)
        filled, shapes = iter(targets), iter(ctx.shapes)
        found: list[Tensor | None] = []
        for rows, grad in zip(ctx.rows, grads, strict=True):
            target, row = None if grad is None else next(filled), 0
            while row < rows:
                size = next(shapes)[0]
                found.append(None if target is None else target[row : row + size])
                row += size
        return None, *(grad if need else None for grad, need in zip(found, ctx.needs_input_grad[1:], strict=True))
