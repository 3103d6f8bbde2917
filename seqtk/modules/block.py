"""The residual connection around a sublayer."""

from torch import Tensor, nn

from seqtk.modules.dropout import Dropout


class Residual(nn.Module):
    """x + dropout(sublayer(x)), with a layer norm before the sublayer (pre-norm) or after the sum (post-norm).

    The caller runs the sublayer between `pre` and `post`, so that a sublayer may take and return a state.
    """

    def __init__(self, dim: int, *, dropout: float, pre_norm: bool, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def pre(self, x_BTD: Tensor) -> Tensor:
        """The input of the sublayer."""
        return self.norm(x_BTD) if self.pre_norm else x_BTD

    def post(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """The output of the residual block, from its input x and the output y of the sublayer."""
        sum_BTD: Tensor = x_BTD + self.dropout(y_BTD)
        return sum_BTD if self.pre_norm else self.norm(sum_BTD)
