"""Exponential moving average (EMA) of the weights. It can be validated and saved instead of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtk.config.fields import probability, setting
from seqtk.training.parallel import local_part


@dataclass(frozen=True)
class AverageConfig:
    """Settings of the exponential moving average of the weights. It covers about 1 / (1 - decay) updates."""

    decay: float = probability(0.999, help="Decay rate of the average.")
    validate: bool = setting(True, help="Validate the average and save it as the best model, instead of the weights.")


class WeightAverage:
    """The average of the weights: a ← d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)) after t updates.

    Because d is small in the first updates, the average soon no longer depends on the initial weights (as in
    TensorFlow's ExponentialMovingAverage). Frozen weights and buffers are not averaged. `tensors` has one average for
    each weight, sharded like the weight.
    """

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self._weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
        self.tensors = {name: weight.clone() for name, weight in self._weights.items()}

    def update(self, step: int, *, made: Tensor) -> None:
        """Updates the average after update `step`, counted from 0. If `made` is false, the update was skipped."""
        share = 1 - min(self.config.decay, (1 + step) / (10 + step))
        weights, averages = self._parts()
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, made.to(averages[0].dtype) * share)
        torch._foreach_add_(averages, differences)

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns (this process's shards of the weights, its shards of the averages)."""
        return list(map(local_part, self._weights.values())), list(map(local_part, self.tensors.values()))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the averages of the weights in `tensors`."""
        for name, average in self.tensors.items():
            if name in tensors:
                average.copy_(tensors[name])

    @contextmanager
    def in_validation(self) -> Iterator[None]:
        """Context manager in which the model uses the averaged weights, unless `config.validate` is false."""
        if not self.config.validate:
            yield
            return
        weights, averages = self._parts()
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)
