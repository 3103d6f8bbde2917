"""Heads that predict one class for each row of features, or for each pair of rows.

B batch, T length, D width, C classes, H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.modules.block import Dropout
from seqtk.modules.head import Head, HeadLosses, check_below_uniform

Pool = Literal["mean", "max", "cls", "last"]
Combination = Literal["concat", "full"]

FILLER = -1
"""The target of a row that the loss ignores."""


class PooledHead(Head):
    """Predicts one class per row: softmax(W pool(x) + b), or, with a hidden layer, softmax(W relu(V pool(x) + a) + b).

    Args:
        dim: D, the width of the features.
        classes: C. All indices below C are classes; none of them is padding.
        pool: How the features of a row are pooled into one vector: `mean`, `max`, or the feature of the first (`cls`)
            or of the `last` position. Padding is ignored; a row that is all padding has the vector 0. For `cls`, the
            model puts a learned vector first, as BERT does (Devlin et al. 2019, arXiv 1810.04805, section 3).
        dropout: The dropout rate of the pooled vector, and of the hidden layer.
        hidden_dim: H, the width of the hidden layer. By default, there is no hidden layer.
        class_weights: The weight of each class in the loss. By default, all weights are 1.
    """

    counts_correct = True
    weight_C: Tensor | None

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        pool: Pool = "mean",
        dropout: float = 0.0,
        hidden_dim: int | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.reads_class_vector = pool == "cls"
        self.dropout = Dropout(dropout)
        self.hidden = None if hidden_dim is None else nn.Linear(dim, hidden_dim)
        self.linear = nn.Linear(hidden_dim or dim, classes)
        nn.init.normal_(self.linear.weight, std=(hidden_dim or dim) ** -0.5)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer(
            "weight_C",
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32),
            persistent=False,
        )

    def vectors(self, features: Tensor, *, pad: Tensor | None = None) -> Tensor:
        """Returns vector_BD, the pooled features of each row."""
        return pooled(features, self.pool, pad_BT=pad)

    def logits(self, features_BTD: Tensor, *, pad_BT: Tensor | None = None) -> Tensor:
        """Returns the logits of the classes for each row, logits_BC, in float32."""
        vector_BD = self.dropout(self.vectors(features_BTD, pad=pad_BT))
        if self.hidden is not None:
            vector_BD = self.dropout(functional.relu(self.hidden(vector_BD)))
        logits_BC: Tensor = self.linear(vector_BD).float()
        return logits_BC

    def check_label_smoothing(self, label_smoothing: float) -> None:
        check_below_uniform(label_smoothing, classes=self.linear.out_features, noun="class")

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        logits_BC = self.logits(features_BTD, pad_BT=pad_BT)
        classes = logits_BC.shape[1]
        # torch shares ε among all C classes. Here the C - 1 other classes share it, as in the token heads.
        share = label_smoothing * classes / max(classes - 1, 1)
        total = functional.cross_entropy(
            logits_BC,
            target,
            weight=self.weight_C,
            label_smoothing=share,
            reduction="sum",
            ignore_index=FILLER,
        )
        with torch.no_grad():
            nll = functional.cross_entropy(logits_BC, target, reduction="sum", ignore_index=FILLER)
            correct = (logits_BC.argmax(1) == target).sum()
        return HeadLosses(total, nll, correct, logits_BC.detach())


class PairHead(PooledHead):
    """Predicts one class for each pair of rows x, y. The same encoder reads both rows.

    Args:
        dim: D, the width of the features.
        classes: C, the number of classes.
        combine: The input of the classifier, from the two pooled vectors: `concat` is [x, y] (Tay et al. 2021, arXiv
            2011.04006, released code; Mega), `full` is [x, y, x * y, x - y] (Nyströmformer's code; S4).
        others: The other arguments of `PooledHead`.
    """

    def __init__(self, dim: int, classes: int, *, combine: Combination = "full", **others: object) -> None:
        super().__init__(dim * (2 if combine == "concat" else 4), classes, **others)  # type: ignore[arg-type]
        self.combine = combine

    def vectors(self, features: Tensor, *, pad: Tensor | None = None) -> Tensor:
        """Returns vector_B(2D) or vector_B(4D) of each pair. The batch is all first rows, then all second rows."""
        x_BD, y_BD = super().vectors(features, pad=pad).chunk(2)
        further = () if self.combine == "concat" else (x_BD * y_BD, x_BD - y_BD)
        return torch.cat([x_BD, y_BD, *further], dim=1)


def pooled(features_BTD: Tensor, pool: Pool, *, pad_BT: Tensor | None = None) -> Tensor:
    """Pools the features of each row into one vector, vector_BD. `PooledHead` describes the values of `pool`."""
    if pad_BT is None:
        return _pooled_whole(features_BTD, pool)
    length_B1 = (~pad_BT).sum(1, keepdim=True)
    if pool == "mean":
        return features_BTD.masked_fill(pad_BT[:, :, None], 0).sum(1) / length_B1.clamp(min=1)
    if pool == "max":
        vector_BD = features_BTD.masked_fill(pad_BT[:, :, None], -torch.inf).amax(1)
    elif pool == "cls":
        vector_BD = features_BTD[:, 0]
    else:
        last_B = length_B1[:, 0].clamp(min=1) - 1
        vector_BD = features_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
    return vector_BD.where(length_B1 > 0, 0)


def _pooled_whole(features_BTD: Tensor, pool: Pool) -> Tensor:
    """Pools rows without padding, with the same results as `pooled`."""
    if pool == "mean":
        return features_BTD.mean(1)
    if pool == "max":
        return features_BTD.amax(1)
    return features_BTD[:, 0 if pool == "cls" else -1]
