"""Embeddings of tokens that represent numbers.

B batch, T length, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ValueEmbedding(nn.Module):
    """An embedding of tokens that represent numbers x, such as pixels: v · (x - mean) / std + b with learned v and b.

    Args:
        values: The number that each token represents, or NaN. The vector of NaN is b.
        dim: D, the width.
        mean: Subtracted from each number.
        std: The divisor of the difference.
    """

    value_V: Tensor

    def __init__(self, values: Sequence[float], dim: int, *, mean: float, std: float) -> None:
        super().__init__()
        self.embedding_dim = dim
        value_V = (torch.tensor(values, dtype=torch.float64) - mean) / std
        self.register_buffer("value_V", value_V.nan_to_num().float(), persistent=False)
        self.linear = nn.Linear(1, dim)
        nn.init.normal_(self.linear.weight, std=dim**-0.5)
        # With a bias of 0, the first LayerNorm would remove all of x · v except the sign of x.
        nn.init.normal_(self.linear.bias, std=dim**-0.5)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.linear(self.value_V[tokens_BT][..., None])  # type: ignore[no-any-return]
