"""The one module that data parallelism wraps: a batch in, the loss and its sums out."""

from typing import Any

import torch
from torch import Tensor, nn

from seqtk.criterions import Criterion
from seqtk.models import Model


class Objective(nn.Module):
    """Criterion and model together, under the precision of the run.

    Attention layers' penalties join the total multiplied by the batch's weight: since the total of an update is divided
    by its whole weight, each penalty counts exactly once however the update is cut.
    """

    def __init__(self, model: Model, criterion: Criterion, *, bf16: bool) -> None:
        super().__init__()
        self.model, self.criterion, self.bf16 = model, criterion, bf16

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The total that is minimised, a sum over the batch's targets, and the sums that are reported."""
        with torch.autocast(batch.ids_B.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.criterion(self.model, batch)
        total = loss.total
        for _, layer in self.model.attention_layers():
            penalty = layer.aux_loss()
            if penalty is not None:
                total = total + penalty * loss.weight
        return total, loss.sums
