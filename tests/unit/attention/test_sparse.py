"""Sparse patterns: visible positions, special cases, memory, decoding steps and errors."""

import dataclasses

import pytest
import torch

from seqtk.attention import AttentionConfig, Role
from seqtk.attention.bigbird import BigBirdConfig, hash32
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.sparse import FixedSparseConfig, StridedSparseConfig
from seqtk.ops.dispatch import naive_mode
from seqtk.testing.memory import measured
from seqtk.testing.subject import assert_close, steps
from seqtk.utils.errors import UserError
from tests.unit.attention.test_windows import SELF, build, mutual

FULL = [
    (StridedSparseConfig(heads=2, stride=1), Role.ENCODER),  # a column has all positions
    (FixedSparseConfig(heads=2, block=20), Role.ENCODER),
    (FixedSparseConfig(heads=2, block=20), Role.CAUSAL),
    (FixedSparseConfig(heads=2, block=3, summary=3), Role.ENCODER),
    (FixedSparseConfig(heads=2, block=3, summary=3), Role.CAUSAL),
    (BigBirdConfig(heads=2, block=20), Role.ENCODER),
    (BigBirdConfig(heads=2, block=4, random_blocks=400), Role.ENCODER),
    (BigBirdConfig(heads=2, block=2, global_blocks=9), Role.ENCODER),
]


@pytest.mark.parametrize(("config", "role"), FULL, ids=str)
def test_pattern_of_all_positions_is_softmax_attention(config: AttentionConfig, role: Role) -> None:
    layer = build(config, role)
    full = build(SoftmaxConfig(heads=2), role, like=layer)
    x_BTD, pad_BS = torch.randn(2, 20, 8, dtype=torch.float64), torch.arange(20) >= torch.tensor([[20], [13]])
    if isinstance(config, StridedSparseConfig):  # compare the outputs of the second head only
        for each in (layer, full):
            each.out = torch.nn.Identity()
        assert_close(layer(x_BTD, pad_BS=pad_BS)[0][~pad_BS][:, 4:], full(x_BTD, pad_BS=pad_BS)[0][~pad_BS][:, 4:])
    else:
        assert_close(layer(x_BTD, pad_BS=pad_BS)[0][~pad_BS], full(x_BTD, pad_BS=pad_BS)[0][~pad_BS])


def test_each_query_sees_the_documented_positions() -> None:
    t, s = torch.meshgrid(torch.arange(14), torch.arange(14), indexing="ij")
    past, column = s <= t, (t - s) % 4 == 0
    for config, role, expected in [
        (StridedSparseConfig(heads=2, stride=4), Role.ENCODER, ((t - s).abs() <= 2) | column),
        (StridedSparseConfig(heads=2, stride=4), Role.CAUSAL, past & ((t - s < 4) | column)),
        (FixedSparseConfig(heads=2, block=4, summary=1), Role.ENCODER, (t // 4 == s // 4) | (s % 4 == 3)),
        (FixedSparseConfig(heads=2, block=4, summary=2), Role.CAUSAL, past & ((t // 4 == s // 4) | (s % 4 >= 2))),
    ]:
        assert torch.equal(mutual(build(config, role), 14), expected), config


@pytest.mark.parametrize(
    "config", [StridedSparseConfig(heads=2, stride=5), FixedSparseConfig(heads=2, block=6)], ids=str
)
@pytest.mark.parametrize("role", SELF)
def test_two_layers_connect_any_two_positions(config: AttentionConfig, role: Role) -> None:
    seen = mutual(build(config, role), 33).double()
    assert torch.equal(seen @ seen > 0, torch.ones(33, 33).tril() > 0 if role is Role.CAUSAL else seen < 2)


def test_bigbird_sees_near_global_and_random_blocks() -> None:
    config = BigBirdConfig(heads=1, block=1, random_blocks=3)
    t, s = torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    always = ((t - s).abs() <= 1) | (t == 0) | (s == 0)
    seen = mutual(build(config, Role.ENCODER), 20)
    assert seen[always].all()
    assert ((seen & ~always).sum(1)[1:] == 3).all()
    assert torch.equal(mutual(build(config, Role.ENCODER), 20), seen)  # the pattern does not depend on the weights
    for other in ({"seed": 1}, {"heads": 2}):
        assert not torch.equal(mutual(build(dataclasses.replace(config, **other), Role.ENCODER), 20), seen)


def test_hash32_is_uniform() -> None:
    counts = torch.histc(hash32(torch.arange(20000)).double(), bins=20, min=0, max=2**32)
    assert ((counts - 1000).abs() < 200).all()


@pytest.mark.parametrize(
    "config",
    [StridedSparseConfig(heads=3, stride=7), FixedSparseConfig(heads=2, block=8, summary=3)],
    ids=lambda config: type(config).__name__,
)
def test_200_decoding_steps_equal_forward(config: AttentionConfig) -> None:
    layer = build(config, Role.CAUSAL, dim=12)
    x_BTD = torch.randn(2, 200, 12, dtype=torch.float64)
    with torch.no_grad():
        assert_close(steps(layer, x_BTD, layer.start(2))[0], layer(x_BTD)[0])


@pytest.mark.skipif(naive_mode(), reason="Only the fast form has a memory bound.")
@pytest.mark.parametrize("role", SELF)
def test_no_tensor_has_all_pairs_of_positions(role: Role) -> None:
    for config in (StridedSparseConfig(heads=2, stride=32), FixedSparseConfig(heads=2, block=32, summary=1)):
        assert measured(build(config, role), 1024).largest <= 1024 * 1024 / 4


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (StridedSparseConfig(heads=1), r"attention\.heads=1"),
        (FixedSparseConfig(heads=2, block=4, summary=5), r"attention\.summary=5"),
    ],
    ids=str,
)
def test_impossible_patterns_are_refused(config: AttentionConfig, key: str) -> None:
    with pytest.raises(UserError, match=key):
        build(config, Role.ENCODER)
