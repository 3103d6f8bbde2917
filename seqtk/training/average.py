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
    """The average a of the weights w: a ← d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)) after t updates.

    Because d is small in the first updates, the average soon no longer depends on the initial weights (as in
    TensorFlow's ExponentialMovingAverage). Frozen weights and buffers are not averaged. `tensors` has one average for
    each weight, sharded like the weight.
    """

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self._weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
        self.tensors = {name: weight.clone() for name, weight in self._weights.items()}

    def update(self, step: int, *, made: Tensor) -> None:
        """Updates the average after update `step`, counted from 0, unless this update was skipped (`made` is false)."""
        share = 1 - min(self.config.decay, (1 + step) / (10 + step))
        weights, averages = self._shards()
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, made.to(averages[0].dtype) * share)
        torch._foreach_add_(averages, differences)

    def _shards(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns (weights, averages). Of sharded tensors, returns this process's shards."""
        return list(map(local_part, self._weights.values())), list(map(local_part, self.tensors.values()))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies averages from `tensors` (name of a weight → average). Does not change other averages."""
        for name, average in self.tensors.items():
            if name in tensors:
                average.copy_(tensors[name])

    @contextmanager
    def in_validation(self) -> Iterator[None]:
        """Context manager in which the model uses the averaged weights, unless `config.validate` is false."""
        if not self.config.validate:
            yield
            return
        weights, averages = self._shards()
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)
