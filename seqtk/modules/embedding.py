"""Token embeddings and position embeddings, with the same ids and layout as in fairseq.

B batch, T length, D width, V vocabulary. Position 0 is the first token of a row.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from seqtk.data.vocabulary import PAD
from seqtk.modules.block import Dropout
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.modules.adaptive import AdaptiveEmbedding

Positions = Literal["sinusoidal", "learned", "none"]


def token_embedding(vocabulary_size: int, dim: int, *, padding_idx: int | None = PAD) -> nn.Embedding:
    """Returns an embedding table initialized from N(0, 1/D), with zeros for PAD."""
    embedding = nn.Embedding(vocabulary_size, dim, padding_idx=padding_idx)
    nn.init.normal_(embedding.weight, std=dim**-0.5)
    if padding_idx is not None:
        with torch.no_grad():
            embedding.weight[padding_idx].zero_()
    return embedding


class Embedding(nn.Module):
    """The input embedding of an encoder or decoder: √D · token + position, then dropout (Vaswani et al. 2017).

    Sections 3.4 and 3.5 of the paper. `scale=False` omits √D. `norm=True` adds a layer norm before the dropout.
    """

    def __init__(
        self,
        tokens: "nn.Embedding | AdaptiveEmbedding | ValueEmbedding",
        *,
        positions: Positions,
        max_length: int,
        dropout: float,
        scale: bool = True,
        norm: bool = False,
    ) -> None:
        super().__init__()
        dim = tokens.embedding_dim
        self.tokens = tokens
        self.scale = math.sqrt(dim) if scale else 1.0
        self.positions: nn.Module | None = None
        if positions == "sinusoidal":
            self.positions = SinusoidalPositions(dim, length=min(max_length, 1024))
        elif positions == "learned":
            self.positions = LearnedPositions(dim, max_length=max_length)
        self.norm = nn.LayerNorm(dim) if norm else None
        self.dropout = Dropout(dropout)

    def forward(
        self, tokens_BT: Tensor, positions_BT: Tensor | None = None, *, around_BMD: Tensor | None = None
    ) -> Tensor:
        """Returns x_BTD, the input of the first block.

        Args:
            tokens_BT: The tokens.
            positions_BT: The positions of the tokens. By default, a row begins at position 0.
            around_BMD: Vectors to put before and after the tokens. Positions then include them.
        """
        x_BTD = self.vectors(tokens_BT)
        if around_BMD is not None:
            x_BTD = torch.cat([around_BMD, x_BTD, around_BMD], dim=1)
        if positions_BT is None:
            positions_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device)[None]
        return self.place(x_BTD, positions_BT)

    def vectors(self, tokens_BT: Tensor) -> Tensor:
        """Returns the token vectors times √D (1 if `scale` is False), without positions."""
        return self.scale * self.tokens(tokens_BT)  # type: ignore[no-any-return]

    def place(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """Adds position embeddings to x, applies norm and dropout, and returns the input of the first block."""
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(positions_BT)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return self.dropout(x_BTD)  # type: ignore[no-any-return]


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


class SinusoidalPositions(nn.Module):
    """Sinusoidal positions, [sin | cos] of D/2 frequencies 10000^(-i / (D/2 - 1)).

    Position p has the vector of fairseq's position p + 2. The table grows with the input, so any length is possible. It
    is computed in float64.

    Args:
        dim: D, the width of the vectors.
        length: The initial length of the table. When the table grows, compiled code is compiled again.
    """

    table_TD: Tensor

    def __init__(self, dim: int, *, length: int = 64) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("table_TD", sinusoids(length, dim), persistent=False)

    def forward(self, positions_BT: Tensor) -> Tensor:
        needed = positions_BT.shape[-1]
        if needed == 1 and not torch.compiler.is_compiling():  # probably a decoding step, which is never compiled
            needed = int(positions_BT.max()) + 1
        if needed > len(self.table_TD):
            table_TD = sinusoids(2 * needed, self.dim)
            self.table_TD = table_TD.to(self.table_TD)
        return self.table_TD[positions_BT]


class LearnedPositions(nn.Module):
    """A learned vector per position, initialized from N(0, 1/D). An input with more positions raises UserError."""

    def __init__(self, dim: int, *, max_length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, positions_BT: Tensor) -> Tensor:
        if positions_BT.shape[-1] > self.table.num_embeddings:
            raise UserError(
                f"An input of {positions_BT.shape[-1]} tokens exceeds the number of learned positions, "
                f"{self.table.num_embeddings}.",
                "Raise model.max_length (in translation: max_source_length, max_target_length) before training.",
            )
        return self.table(positions_BT)  # type: ignore[no-any-return]


def sinusoids(length: int, dim: int) -> Tensor:
    """Returns table_TD, the sinusoids of positions 0 … length - 1, in float32. For an odd D, the last column is 0."""
    half = dim // 2
    frequency_E = torch.exp(torch.arange(half, dtype=torch.float64) * -(math.log(10000) / max(half - 1, 1)))
    angle_TE = torch.arange(2, length + 2, dtype=torch.float64)[:, None] * frequency_E
    table_TD = torch.cat([angle_TE.sin(), angle_TE.cos()], dim=1)
    return nn.functional.pad(table_TD, (0, dim % 2)).float()
