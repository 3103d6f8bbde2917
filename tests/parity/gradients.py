"""Compares the gradients of a model with those that fairseq computed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn


def assert_gradient_norms(
    model: nn.Module, stored: dict[str, Any], fairseq_name: Callable[[str], str], *, rel: float
) -> None:
    """Requires that each parameter has the stored gradient norm, that none is left, and that the total norm is equal.

    Args:
        model: A model after the backward pass.
        stored: fairseq's gradients.json.
        fairseq_name: Our name of a parameter → fairseq's.
        rel: The relative tolerance of a norm.
    """
    wanted = dict(stored["gradient_norms"])
    squares = 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        norm = float(parameter.grad.double().norm())
        squares += norm**2
        # A key's bias has no gradient but rounding error: it adds the same to all logits of a row.
        assert norm == pytest.approx(wanted.pop(fairseq_name(name)), rel=rel, abs=5e-6), name
    assert not wanted
    assert math.sqrt(squares) == pytest.approx(stored["gradient_norm_of_sum"], rel=1e-6)
