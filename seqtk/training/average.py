"""An exponential moving average of the weights, which a run can validate and save in addition to the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtk.config.fields import probability, setting
from seqtk.training.parallel import local_part


@dataclass(frozen=True)
class AverageConfig:
    """The average of the weights over the last updates, about 1 / (1 - decay) of them."""

    decay: float = probability(0.999, help="The share of the average that each update keeps.")
    validate: bool = setting(True, help="Validate the average, and keep it as the best model, instead of the weights.")


class WeightAverage:
    """a ← d a + (1 - d) w after each update, with d = min(decay, (1 + t) / (10 + t)) after t updates.

    The smaller d at the start forgets the initial weights (as in TensorFlow's ExponentialMovingAverage). Weights that
    do not train, and buffers, are not averaged. State: `tensors`, one for each weight, in the shards of the engine.
    """

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self._weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
        self.tensors = {name: weight.clone() for name, weight in self._weights.items()}

    def update(self, step: int, *, made: Tensor) -> None:
        """Adds the weights after update `step`, counted from 0, if that was made."""
        share = 1 - min(self.config.decay, (1 + step) / (10 + step))
        weights, averages = self._parts()
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, made.to(averages[0].dtype) * share)
        torch._foreach_add_(averages, differences)

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Returns this process's parts of the weights, and of their averages."""
        return list(map(local_part, self._weights.values())), list(map(local_part, self.tensors.values()))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the averages that `tensors` names."""
        for name, average in self.tensors.items():
            if name in tensors:
                average.copy_(tensors[name])

    @contextmanager
    def in_validation(self) -> Iterator[None]:
        """Inside the block the model has the averaged weights, unless `validate` is false."""
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
