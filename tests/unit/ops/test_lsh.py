"""LSH attention: gradients for small and large queries, and positions that share a bucket with no other."""

import pytest
import torch

from seqtk.ops import lsh
from seqtk.testing.subject import assert_close


@pytest.mark.parametrize("size", [1e-3, 1, 1e3])
def test_gradients_are_finite_for_small_and_large_queries(size: float) -> None:
    rounds = lsh.HashRounds.sort(torch.randint(3, (2, 2, 3, 12)), chunk=4, causal=True)
    query_XE = (size * torch.randn(48, 3)).requires_grad_()
    value_XE = torch.randn(48, 3)
    y_XE = lsh.lsh_attention(query_XE, value_XE, rounds)
    exact_XE = lsh.lsh_attention(query_XE.detach().double(), value_XE.double(), rounds)
    y_XE.sum().backward()  # type: ignore[no-untyped-call]
    assert query_XE.grad is not None
    assert query_XE.grad.isfinite().all()
    assert_close(y_XE.detach().double(), exact_XE, 1e-6 * max(size, 1))  # float32 logits are as large as queries


def test_position_alone_in_its_bucket_sees_itself() -> None:
    query_XE, value_XE = torch.randn(8, 3), torch.randn(8, 3, requires_grad=True)
    rounds = lsh.HashRounds.sort(torch.arange(8).expand(1, 1, 2, 8), chunk=4, causal=False)
    y_XE = lsh.lsh_attention(query_XE, value_XE, rounds)
    assert_close(y_XE, value_XE, 0)
    (grad_XE,) = torch.autograd.grad(y_XE, value_XE, query_XE)
    assert_close(grad_XE, query_XE, 0)
