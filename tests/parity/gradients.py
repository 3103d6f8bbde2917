"""Compares the gradients of a model with gradients computed by fairseq."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn


def assert_gradient_norms(
    model: nn.Module, stored: dict[str, Any], fairseq_name: Callable[[str], str], *, rel: float
) -> None:
    """Checks that each parameter has the stored gradient norm, that all stored norms are used, and the total norm.

    Args:
        model: A model after the backward pass.
        stored: fairseq's gradients.json.
        fairseq_name: Returns fairseq's name for the name of a parameter in seqtk.
        rel: The relative tolerance of a norm.
    """
    wanted = dict(stored["gradient_norms"])
    squares = 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        norm = float(parameter.grad.double().norm())
        squares += norm**2
        # The gradient of a key bias is a rounding error: the bias adds the same value to all logits of a row.
        assert norm == pytest.approx(wanted.pop(fairseq_name(name)), rel=rel, abs=5e-6), name
    assert not wanted
    assert math.sqrt(squares) == pytest.approx(stored["gradient_norm_of_sum"], rel=1e-6)
