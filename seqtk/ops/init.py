"""What layers without heads are made of."""

from typing import Any

from torch import nn

from seqtk.utils.errors import UserError


def xavier_linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """A linear map, Xavier-uniform, its bias (if any) zero."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def check_at_least_one(config: Any, *fields: str) -> None:
    """Raises UserError for a size below 1; None, which stands for a default, passes."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value < 1:
            raise UserError(f"attention.{field}={value} must be at least 1.")
