"""One class for each row of features.

B batch, T length, D width, C classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.modules.block import Dropout
from seqtk.modules.head import Head, HeadLosses

Pool = Literal["mean", "max", "cls", "last"]


class PooledHead(Head):
    """One class for each row: softmax(W pool(x) + b).

    Args:
        dim: D, the width of the features.
        classes: C. Every number below C is a class; there is no padding among them.
        pool: How the features of a row become one vector: their `mean` or `max`, or the feature of the first (`cls`)
            or of the `last` position. Padding is ignored; a row of padding only has the vector 0.
        dropout: The dropout rate of the pooled vector.
    """

    counts_correct = True

    def __init__(self, dim: int, classes: int, *, pool: Pool = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        self.pool = pool
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, classes)
        nn.init.normal_(self.linear.weight, std=dim**-0.5)
        nn.init.zeros_(self.linear.bias)

    def logits(self, features_BTD: Tensor, *, pad_BT: Tensor | None = None) -> Tensor:
        """logits_BC, in float32."""
        logits_BC: Tensor = self.linear(self.dropout(pooled(features_BTD, self.pool, pad_BT=pad_BT))).float()
        return logits_BC

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        logits_BC = self.logits(features_BTD, pad_BT=pad_BT)
        classes = logits_BC.shape[1]
        # torch shares ε among all C classes; here the C - 1 others have it, as in the token heads.
        share = label_smoothing * classes / max(classes - 1, 1)
        total = functional.cross_entropy(logits_BC, target, label_smoothing=share, reduction="sum")
        with torch.no_grad():
            nll = functional.cross_entropy(logits_BC, target, reduction="sum")
            correct = (logits_BC.argmax(1) == target).sum()
        return HeadLosses(total, nll, correct)


def pooled(features_BTD: Tensor, pool: Pool, *, pad_BT: Tensor | None = None) -> Tensor:
    """vector_BD of each row. See `PooledHead`."""
    if pad_BT is None:
        pad_BT = torch.zeros(features_BTD.shape[:2], dtype=torch.bool, device=features_BTD.device)
    real_BT1 = ~pad_BT[:, :, None]
    length_B1 = real_BT1.sum(1)
    if pool == "mean":
        return features_BTD.where(real_BT1, 0).sum(1) / length_B1.clamp(min=1)
    if pool == "max":
        vector_BD = features_BTD.masked_fill(~real_BT1, -torch.inf).amax(1)
    elif pool == "cls":
        vector_BD = features_BTD[:, 0]
    else:
        last_B = length_B1[:, 0].clamp(min=1) - 1
        vector_BD = features_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
    return vector_BD.where(length_B1 > 0, 0)
