"""The module that engines wrap: a batch goes in, and its loss, its statistics and its recurrent state come out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from seqtk.attention import State
from seqtk.criterions import Criterion
from seqtk.criterions.base import Stats
from seqtk.models import Model


class TrainStep(nn.Module):
    """Criterion and model together, in the precision of the run.

    Penalties of attention layers join the total multiplied by the batch's weight: since the total of an update is
    divided by its whole weight, each penalty counts exactly once however the update is split into micro-batches.
    """

    def __init__(self, model: Model, criterion: Criterion, *, bf16: bool) -> None:
        super().__init__()
        self.model, self.criterion, self.bf16 = model, criterion, bf16

    def forward(self, batch: Any, state: State = None) -> tuple[Tensor, Stats, State]:
        """Computes the loss of a micro-batch.

        Args:
            batch: The micro-batch.
            state: The recurrent state in which its rows start; None for the beginning of a text.

        Returns:
            The total to minimise, a sum over the targets; the statistics for metrics; and the recurrent state in
            which the rows end, without gradient.
        """
        with torch.autocast(batch.ids_B.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.criterion(self.model, batch, state)
        total = loss.total
        for _, layer in self.model.attention_layers():
            penalty = layer.aux_loss()
            if penalty is not None:
                total = total + penalty * loss.weight
        stats = loss.stats
        if not loss.weight:  # a row that stands in for no examples: it only takes part in the all-reduce
            total, stats = total * 0, {name: (value * 0, weight * 0) for name, (value, weight) in stats.items()}
        return total, stats, tree_map(lambda leaf: None if leaf is None else leaf.detach().clone(), loss.state)
