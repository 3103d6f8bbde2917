"""The one module that data parallelism wraps: a batch and what its rows carry in, loss, sums and the like out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from seqtk.attention import State
from seqtk.criterions import Criterion
from seqtk.criterions.base import Stats
from seqtk.models import Model


class Objective(nn.Module):
    """Criterion and model together, under the precision of the run.

    Attention layers' penalties join the total multiplied by the batch's weight: since the total of an update is divided
    by its whole weight, each penalty counts exactly once however the update is cut.
    """

    def __init__(self, model: Model, criterion: Criterion, *, bf16: bool) -> None:
        super().__init__()
        self.model, self.criterion, self.bf16 = model, criterion, bf16

    def forward(self, batch: Any, carried: State = None) -> tuple[Tensor, Stats, State]:
        """The total that is minimised, a sum over the batch's targets, and the sums that metrics are computed from.

        `carried` is what the model's rows were handed by those before them; last, without gradient, what they hand on.
        """
        with torch.autocast(batch.ids_B.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.criterion(self.model, batch, carried)
        total = loss.total
        for _, layer in self.model.attention_layers():
            penalty = layer.aux_loss()
            if penalty is not None:
                total = total + penalty * loss.weight
        stats = loss.stats
        if not loss.weight:  # a row that stands in for no examples: it only takes part in the all-reduce
            total, stats = total * 0, {name: (value * 0, weight * 0) for name, (value, weight) in stats.items()}
        return total, stats, tree_map(lambda leaf: None if leaf is None else leaf.detach().clone(), loss.state)
