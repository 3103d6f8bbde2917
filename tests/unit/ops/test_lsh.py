"""LSH attention: gradients at every chunk size, with and without dropout."""

import pytest
import torch
from torch import Tensor

from seqtk.ops import lsh as buckets
from seqtk.testing.subject import close


def problem(*, causal: bool, length: int = 12) -> tuple[Tensor, Tensor, buckets.HashRounds]:
    """Rows of two sequences, two heads and three rounds, and where they stand in chunks of 4."""
    bucket_BHRT = torch.randint(3, (2, 2, 3, length))
    rounds = buckets.HashRounds.sort(bucket_BHRT, chunk=4, causal=causal)
    query_XE, value_XE = (torch.randn(4 * length, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return query_XE, value_XE, rounds


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [4, 12])
@pytest.mark.parametrize("piece", [1, 64, 2**18])
def test_gradients_equal_finite_differences(
    causal: bool, length: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "CHUNK_LOGITS", {"cpu": piece})
    query_XE, value_XE, rounds = problem(causal=causal, length=length)

    def attend(query_XE: Tensor, value_XE: Tensor) -> Tensor:
        return buckets.lsh_attention(query_XE, value_XE, rounds)

    assert torch.autograd.gradcheck(attend, (query_XE, value_XE), fast_mode=True)


@pytest.mark.parametrize("causal", [False, True])
def test_autograd_function_equals_torch(causal: bool) -> None:
    query_XE, value_XE, rounds = problem(causal=causal)
    grad_XE = torch.randn_like(value_XE)
    by_hand, by_torch = (
        (y_XE, *torch.autograd.grad(y_XE, [query_XE, value_XE], grad_XE))
        for dropout in (0.0, 1e-12)  # which drops nothing
        for y_XE in [buckets.lsh_attention(query_XE, value_XE, rounds, dropout=dropout)]
    )
    for ours, torchs in zip(by_hand, by_torch, strict=True):
        close(ours, torchs)


@pytest.mark.parametrize("size", [1e-3, 1, 1e3])
def test_queries_of_any_size_keep_gradients_finite(size: float) -> None:
    query_XE, value_XE, rounds = problem(causal=True)
    query_XE, value_XE = ((size * query_XE).detach().float().requires_grad_(), value_XE.detach().float())
    y_XE = buckets.lsh_attention(query_XE, value_XE, rounds)
    exact_XE = buckets.lsh_attention(query_XE.detach().double(), value_XE.double(), rounds)
    y_XE.sum().backward()  # type: ignore[no-untyped-call]
    assert query_XE.grad is not None
    assert query_XE.grad.isfinite().all()
    close(y_XE.detach().double(), exact_XE, 1e-6 * max(size, 1))  # of float32's logits, as large as queries


def test_position_sees_itself_if_nothing_else() -> None:
    query_XE, value_XE = torch.randn(8, 3), torch.randn(8, 3, requires_grad=True)
    rounds = buckets.HashRounds.sort(torch.arange(8).expand(1, 1, 2, 8), chunk=4, causal=False)
    y_XE = buckets.lsh_attention(query_XE, value_XE, rounds)
    close(y_XE, value_XE, 0)
    (grad_XE,) = torch.autograd.grad(y_XE, value_XE, query_XE)
    close(grad_XE, query_XE, 0)
