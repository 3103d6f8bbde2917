"""Heads computed in groups equal heads computed at once, also under autocast. A law checks this for every layer."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Role, attentions
from seqtk.config.schema import from_dict
from seqtk.ops import head_checkpoint
from seqtk.ops.dispatch import naive_ops
from seqtk.ops.head_checkpoint import LazyProjection, checkpoint_over_heads

HEADS, WIDTH, LENGTH = 4, 8, 6


@pytest.fixture(autouse=True)
def one_head_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(head_checkpoint, "MIN_LENGTH", 0)
    monkeypatch.setattr(head_checkpoint, "CHUNK_ELEMENTS", {"cpu": 1})
    with naive_ops(False):
        yield


class TestAutocast:
    @pytest.mark.parametrize(
        "kind", ["linear", "feedforward_kernel", "simpletron", "luna", "sliding_window", "dynamic_conv"]
    )
    @pytest.mark.slow
    def test_groups_of_heads_keep_gradients_under_autocast(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        config = from_dict(attentions.config_type(kind), {"heads": HEADS})
        layer = attentions.build(config, dim=HEADS * WIDTH, role=Role.CAUSAL)
        x_BTD = torch.randn(2, LENGTH, HEADS * WIDTH)
        in_turn = self.gradients(layer, x_BTD)
        monkeypatch.setattr(head_checkpoint, "MIN_LENGTH", LENGTH + 1)
        at_once = self.gradients(layer, x_BTD)
        exact = self.gradients(layer, x_BTD, autocast=False)
        for whole, made, right in zip(at_once, in_turn, exact, strict=True):
            assert made.dtype == whole.dtype
            # The error of bfloat16. The exact gradient of a key bias is 0, so that only rounding errors remain.
            least = 0.005 * float(max(gradient.detach().norm() for gradient in exact[2:]))
            assert (made - right).norm() <= max(1.5 * (whole - right).norm(), least)
            assert (made - right).norm() <= max(0.03 * right.norm(), least)

    def gradients(self, layer: Any, x_BTD: Tensor, *, autocast: bool = True) -> list[Tensor]:
        """Returns the output, and the gradients of the input and of all parameters."""
        x_BTD = x_BTD.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y_BTD = layer(x_BTD)[0]
        y_BTD.float().square().sum().backward()
        assert x_BTD.grad is not None
        return [y_BTD, x_BTD.grad, *(parameter.grad for parameter in layer.parameters())]


class TestGroups:
    @pytest.mark.parametrize("elements", [1, 2 * LENGTH * WIDTH, 3 * LENGTH * WIDTH, 10**6])
    def test_each_head_is_in_one_group(self, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(head_checkpoint, "CHUNK_ELEMENTS", {"cpu": elements})
        groups: list[slice] = []

        def double(some: slice, x_BTd: Tensor) -> Tensor:
            groups.append(some)
            return 2 * x_BTd

        x_BTD = torch.randn(1, LENGTH, HEADS * WIDTH)
        assert torch.equal(checkpoint_over_heads(double, x_BTD, heads=HEADS), 2 * x_BTD)
        heads = [head for some in groups for head in range(some.start, some.stop)]
        assert heads == list(range(HEADS))
        assert all(LENGTH * WIDTH * (some.stop - some.start) <= max(elements, LENGTH * WIDTH) for some in groups)

    def test_random_function_computes_all_heads_at_once(self) -> None:
        groups: list[slice] = []

        def function(some: slice, x_BTd: Tensor) -> Tensor:
            groups.append(some)
            return x_BTd

        checkpoint_over_heads(function, torch.ones(1, 2, 4), heads=4, is_random=True)
        assert groups == [slice(0, 4)]

    def test_frozen_projection_has_no_gradient(self) -> None:
        linear = torch.nn.Linear(3, 8).requires_grad_(False)
        x_BTI = torch.randn(1, 2, 3, requires_grad=True)
        checkpoint_over_heads(lambda _, x: x.exp(), LazyProjection(x_BTI, linear), heads=4).sum().backward()
        found = x_BTI.grad
        x_BTI.grad = None
        linear(x_BTI).exp().sum().backward()
        torch.testing.assert_close(found, x_BTI.grad)
        assert linear.weight.grad is None
