"""A parallel engine: data parallelism that reduces all gradients as one flat tensor after the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from seqtk.training.ddp import DDP
from seqtk.training.parallel import EngineConfig, engines


@dataclass(frozen=True)
class FlatConfig(EngineConfig):
    """A config without settings."""


@engines.register("flat", FlatConfig)
class FlatEngine(DDP):
    """Computes the same updates as `ddp`, but communicates only after the backward pass."""

    def wrap(self, step: nn.Module) -> nn.Module:
        return step

    @contextmanager
    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> Iterator[None]:
        yield
        gradients = [weight.grad for weight in wrapped.parameters() if weight.grad is not None]
        if enabled and gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            parts = (flat / self.size).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
