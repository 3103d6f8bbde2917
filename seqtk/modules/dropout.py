"""Dropout as a module."""

from torch import Tensor, nn

from seqtk.ops.dropout import dropout
from seqtk.utils.errors import UserError


class Dropout(nn.Module):
    """While training, sets each element to 0 with probability `rate` and scales the rest by 1 / (1 - rate).

    Raises UserError if `rate` is not a probability less than 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        check_rate(rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.training else x


def check_rate(rate: float) -> None:
    """Raises UserError if `rate` is not a probability less than 1."""
    if not 0 <= rate < 1:
        raise UserError(f"dropout={rate}: must be a probability less than 1.")
