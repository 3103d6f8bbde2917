"""LSH attention of Reformer: special cases, rounds, hashes, decoding steps and errors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqtk.attention import Role
from seqtk.attention.reformer import ReformerConfig
from seqtk.testing.subject import assert_close, steps
from seqtk.utils.errors import UserError
from tests.unit.attention.test_windows import SELF, build


def full_shared(layer: Any, x_BTD: Tensor) -> Tensor:
    """Computes full attention with normalized queries as keys. A position sees itself only if it sees no other."""
    query_BHTE, value_BHTE = layer.split(layer.query_key(x_BTD)), layer.split(layer.value(x_BTD))
    key_BHTE = nn.functional.normalize(query_BHTE, dim=-1)
    logits_BHTS = query_BHTE @ key_BHTE.transpose(-1, -2) / math.sqrt(query_BHTE.shape[-1])
    logits_BHTS = logits_BHTS - 1e5 * torch.eye(x_BTD.shape[1], dtype=x_BTD.dtype)
    if layer.role is Role.CAUSAL:
        logits_BHTS = logits_BHTS.masked_fill(torch.ones_like(logits_BHTS).triu(1) > 0, -math.inf)
    y_BTD: Tensor = layer.out(layer.join(logits_BHTS.softmax(-1) @ value_BHTE))
    return y_BTD


@pytest.mark.parametrize("role", SELF)
@pytest.mark.parametrize("rounds", [1, 3])
def test_one_bucket_in_one_chunk_equals_full_attention(role: Role, rounds: int) -> None:
    layer: Any = build(ReformerConfig(heads=2, chunk=20, rounds=rounds), role)
    layer.rotations.zero_()  # now all positions are in the first bucket
    x_BTD = torch.randn(2, 17, 8, dtype=torch.float64)
    assert_close(layer(x_BTD)[0], full_shared(layer, x_BTD))


def test_more_hash_rounds_approach_full_attention() -> None:
    x_BTD = torch.randn(4, 64, 8, dtype=torch.float64)
    errors = []
    for rounds in (1, 4, 16):
        layer = build(ReformerConfig(heads=2, buckets=4, chunk=16, rounds=rounds), Role.ENCODER)
        with torch.no_grad():
            full_BTD = full_shared(layer, x_BTD)
            errors.append(float((layer(x_BTD)[0] - full_BTD).norm() / full_BTD.norm()))
    assert errors[0] > 1.3 * errors[1] > 1.3 * 1.3 * errors[2]


def test_bucket_depends_on_the_direction_only() -> None:
    layer: Any = build(ReformerConfig(heads=1, buckets=8, rounds=50), Role.ENCODER)
    query = torch.randn(8, dtype=torch.float64)
    buckets = layer._buckets(torch.stack([query, 3 * query, -query])[None, None], layer.rotations)[0, 0]
    assert torch.equal(buckets[:, 0], buckets[:, 1])
    assert (buckets[:, 0] != buckets[:, 2]).all()
    assert len(buckets.unique()) > 1


def test_only_training_draws_new_hashes() -> None:
    config = ReformerConfig(heads=2, buckets=4, chunk=4, rounds=1)
    layer = build(config, Role.ENCODER)
    x_BTD = torch.randn(2, 30, 8, dtype=torch.float64)
    before = layer(x_BTD)[0]
    layer.train()
    assert not torch.allclose(layer(x_BTD)[0], layer(x_BTD)[0])
    torch.manual_seed(5)
    first = layer(x_BTD)[0]
    torch.manual_seed(5)
    assert_close(layer(x_BTD)[0], first, 0)  # the hashes depend on torch's generator only
    assert_close(layer.eval()(x_BTD)[0], before, 0)
    assert_close(build(config, Role.ENCODER, like=layer)(x_BTD)[0], before, 0)


@pytest.mark.parametrize("chunk", [1, 5, 300])
def test_200_decoding_steps_equal_forward(chunk: int) -> None:
    layer = build(ReformerConfig(heads=2, buckets=4, chunk=chunk, rounds=3), Role.CAUSAL)
    x_BTD = torch.randn(2, 200, 8, dtype=torch.float64)
    with torch.no_grad():
        assert_close(steps(layer, x_BTD, layer.start(2))[0], layer(x_BTD)[0])


def test_odd_number_of_buckets_is_refused() -> None:
    with pytest.raises(UserError, match=r"attention\.buckets=7"):
        build(ReformerConfig(heads=2, buckets=7), Role.ENCODER)
