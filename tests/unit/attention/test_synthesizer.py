"""Tests of Synthesizers and their mixtures. The tests that all attention layers share are in tests/laws."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from seqtk.attention import Attention, AttentionConfig, Role, attentions
from seqtk.attention.mixture import SynthesizerMixtureConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.synthesizer import (
    SynthesizerConfig,
    SynthesizerDenseConfig,
    SynthesizerFactorizedDenseConfig,
    SynthesizerFactorizedRandomConfig,
    SynthesizerFixedRandomConfig,
    SynthesizerRandomConfig,
    factor_lengths,
    product,
)
from seqtk.config.schema import from_dict, to_dict
from seqtk.ops.blockwise_softmax import (
    BLOCK,
    SHORT,
    LogitSpec,
    LogitTensors,
    blockwise_softmax,
    naive,
    table,
)
from seqtk.ops.dispatch import naive_mode
from seqtk.testing.memory import measured
from seqtk.utils.errors import UserError

DIM = 8


def build(config: Any, role: Role = Role.ENCODER) -> Attention:
    config = dataclasses.replace(config, heads=config.heads or 2)
    return attentions.build(config, dim=DIM, role=role).eval()


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (SynthesizerFixedRandomConfig(heads=8), 61),
        (SynthesizerRandomConfig(heads=8), 67),
        (SynthesizerFactorizedRandomConfig(heads=8), 61),
        (SynthesizerMixtureConfig(heads=8, parts=("random", "dot")), 73),
    ],
)
def test_parameter_counts_equal_table_2_of_the_paper(config: AttentionConfig, millions: int) -> None:
    """The table replaces the 12 self-attention layers of a base Transformer with 67M parameters."""

    def count(config: AttentionConfig) -> int:
        return sum(p.numel() for p in attentions.build(config, dim=512, role=Role.ENCODER).parameters())

    transformer = 67.0  # millions
    assert round(transformer + 12 * (count(config) - count(SoftmaxConfig(heads=8))) / 1e6) == millions


@pytest.mark.parametrize(
    ("config", "logits"),
    [
        (SynthesizerDenseConfig(heads=8, bias=False), 512**2 + 512 * 256),
        (SynthesizerDenseConfig(heads=8), 512**2 + 512 * 256 + 512 + 8 * 256),
        (SynthesizerFactorizedDenseConfig(heads=8, bias=False), 512**2 + 512 * (16 + 16)),
        (SynthesizerFactorizedRandomConfig(heads=8), 2 * 8 * 256 * 8),
        (SynthesizerRandomConfig(heads=4, max_length=10), 4 * 10 * 10),
        (SynthesizerFixedRandomConfig(heads=8), 0),
    ],
)
def test_parameter_counts_follow_their_formulas(config: SynthesizerConfig, logits: int) -> None:
    with torch.device("meta"):
        layer = attentions.build(config, dim=512, role=Role.CAUSAL)
    value_path = 2 * (512**2 + 512 * config.bias)
    assert sum(p.numel() for p in layer.parameters()) == value_path + logits


def test_fixed_matrix_is_saved_but_not_trained() -> None:
    trained = build(SynthesizerRandomConfig(heads=2, max_length=4))
    fixed = build(SynthesizerFixedRandomConfig(heads=2, max_length=4))
    assert "logits.matrix" in dict(trained.named_parameters())
    assert "logits.matrix" not in dict(fixed.named_parameters())
    assert "logits.matrix" in fixed.state_dict()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 11, 12, 13, 255, 256, 257])
def test_factor_lengths_multiply_to_at_least_the_length(length: int) -> None:
    a, b = factor_lengths(length)
    assert a * b >= length
    assert (a - 1) * b < length
    assert 0 <= b - math.sqrt(length) < 1


def test_factorized_dense_logits_are_distinct() -> None:
    layer = build(SynthesizerFactorizedDenseConfig(heads=2, max_length=11)).double()
    torch.nn.init.constant_(layer.get_parameter("logits.hidden.bias"), 9.0)  # inactive units give equal logits
    x_BTD = torch.randn(1, 11, DIM, dtype=torch.float64)
    logits_HTS = layer.get_submodule("logits")(x_BTD, rows=slice(0, 11), columns=11).logits(11)[0]
    for matrix in logits_HTS:
        assert len(set(matrix[0].tolist())) == 11
        assert len(set(matrix[:, 0].tolist())) == 11


def test_zero_logits_give_the_mean_of_the_values() -> None:
    layer = build(SynthesizerRandomConfig(heads=2, max_length=6))
    torch.nn.init.zeros_(layer.get_parameter("logits.matrix"))
    x_BTD = torch.randn(2, 6, DIM)
    mean_B1D = x_BTD.mean(1, keepdim=True)
    expected = layer.get_submodule("out")(layer.get_submodule("value")(mean_B1D))
    torch.testing.assert_close(layer(x_BTD)[0], expected.expand_as(x_BTD))


def test_mixture_with_all_weight_on_dot_equals_softmax() -> None:
    mixture = build(SynthesizerMixtureConfig(heads=2, max_length=6, parts=("dot", "random"), mix="sigmoid"))
    torch.nn.init.constant_(mixture.get_parameter("mixing"), 100.0)
    softmax = build(SoftmaxConfig(heads=2))
    softmax.load_state_dict({k: v for k, v in mixture.state_dict().items() if k in softmax.state_dict()})
    x_BTD = torch.randn(2, 6, DIM)
    torch.testing.assert_close(mixture(x_BTD), softmax(x_BTD))


def test_mixture_without_weight_on_dot_equals_random() -> None:
    mixture = build(SynthesizerMixtureConfig(heads=2, max_length=6, parts=("dot", "random"), mix="sigmoid"))
    torch.nn.init.constant_(mixture.get_parameter("mixing"), -100.0)
    random = build(SynthesizerRandomConfig(heads=2, max_length=6))
    weights = {name.replace("sources.random", "logits"): tensor for name, tensor in mixture.state_dict().items()}
    random.load_state_dict({name: weights[name] for name in random.state_dict()})
    x_BTD = torch.randn(2, 6, DIM)
    torch.testing.assert_close(mixture(x_BTD), random(x_BTD))


def test_full_rank_factors_equal_the_random_matrix() -> None:
    random = build(SynthesizerRandomConfig(heads=2, max_length=6))
    factorized = build(SynthesizerFactorizedRandomConfig(heads=2, max_length=6, rank=6))
    weights = random.state_dict()
    factors = {"logits.query": weights.pop("logits.matrix"), "logits.key": torch.eye(6).expand(2, -1, -1)}
    factorized.load_state_dict(weights | factors)
    x_BTD = torch.randn(2, 6, DIM)
    torch.testing.assert_close(factorized(x_BTD), random(x_BTD))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SynthesizerMixtureConfig(mix="sum"), {}),
        (SynthesizerMixtureConfig(mix="sigmoid"), {"random": 0.5, "dot": 0.5}),
        (SynthesizerMixtureConfig(parts=("dot", "random", "dense", "fixed_random")), dict.fromkeys(
            ["dot", "random", "dense", "fixed_random"], 0.25)),
        (SynthesizerMixtureConfig(per_head=True), {"random.0": 0.5, "random.1": 0.5, "dot.0": 0.5, "dot.1": 0.5}),
    ],
)  # fmt: skip
def test_mixture_reports_its_weights(config: SynthesizerMixtureConfig, expected: dict[str, float]) -> None:
    assert build(dataclasses.replace(config, heads=2, max_length=4)).monitored() == expected


@dataclass(frozen=True)
class Slot:
    attention: AttentionConfig = SoftmaxConfig()


def test_mixture_config_is_read_from_a_dict() -> None:
    tree = {"kind": "synthesizer_mixture", "parts": ["random", "dot"], "mix": "sigmoid", "max_length": 256}
    config = from_dict(Slot, {"attention": tree})
    assert config.attention == SynthesizerMixtureConfig(parts=("random", "dot"), mix="sigmoid", max_length=256)
    assert from_dict(Slot, to_dict(config)) == config


@pytest.mark.parametrize("parts", [[], ["dot"], ["random", "random"]])
def test_mixture_requires_two_different_parts(parts: list[str]) -> None:
    with pytest.raises(UserError, match=r"attention\.parts"):
        build(from_dict(SynthesizerMixtureConfig, {"parts": parts}))


def test_sigmoid_mixture_requires_exactly_two_parts() -> None:
    config = from_dict(SynthesizerMixtureConfig, {"parts": ["random", "dense", "dot"], "mix": "sigmoid"})
    with pytest.raises(UserError, match=r"attention\.mix=softmax"):
        build(config)


def test_unknown_part_suggests_a_similar_part() -> None:
    with pytest.raises(UserError, match="random"):
        from_dict(SynthesizerMixtureConfig, {"parts": ["randm", "dot"]})


MIXTURES: list[dict[str, Any]] = [
    {"parts": ["dot", "random"], "mix": "sigmoid"},
    {"parts": ["dense", "random"], "mix": "sum"},
    {"parts": ["factorized_random", "fixed_random"]},
    {"parts": ["factorized_dense", "factorized_random"]},
    {"parts": ["dot", "dense", "random", "factorized_dense", "factorized_random", "fixed_random"], "per_head": True},
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: "-".join(map(str, mixture.values())))
def test_blockwise_softmax_equals_the_naive_form(
    mixture: dict[str, Any], batch: int, causal: bool, padded: bool
) -> None:
    """Compares outputs and gradients over several blocks."""
    length = SHORT + 6
    config = from_dict(SynthesizerMixtureConfig, {"heads": 2, "max_length": length + 1, **mixture})
    layer = build(config).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    x_BTD = torch.randn(batch, length, DIM, dtype=torch.float64)
    value_BHSE = torch.randn(batch, 2, length, 3, dtype=torch.float64, requires_grad=True)
    pad_BS = torch.arange(length) >= torch.tensor([length - 9, length, 0])[:batch, None] if padded else None

    def run(in_blocks: bool) -> list[torch.Tensor | None]:
        maps = (layer.query, layer.key) if layer.has_dot else ()
        projected = (layer.split(each(x_BTD)) for each in maps)  # type: ignore[operator]
        logits = layer.mixed_logits(x_BTD, *projected)  # type: ignore[operator]
        if in_blocks:
            y_BHTE = blockwise_softmax(logits, value_BHSE, pad_BS=pad_BS, causal=causal, block=1)
        else:
            y_BHTE = naive(logits, value_BHSE, pad_BS=pad_BS, causal=causal)
        inputs = [value_BHSE, *layer.parameters()]
        return [y_BHTE, *torch.autograd.grad(y_BHTE.square().sum(), inputs, allow_unused=True)]

    for blocks, whole in zip(run(True), run(False), strict=True):
        if blocks is None:
            assert whole is None
        else:
            torch.testing.assert_close(blocks, whole, atol=1e-9, rtol=1e-9)


def test_blockwise_dropout_has_correct_gradients() -> None:
    length = SHORT + 2
    left_1HTK = torch.randn(1, 1, length, 2, dtype=torch.float64, requires_grad=True)
    right_1HKS = torch.randn(1, 1, 2, length, dtype=torch.float64, requires_grad=True)
    value_BHSE = torch.randn(2, 1, length, 1, dtype=torch.float64, requires_grad=True)

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return blockwise_softmax(
            LogitSpec(product, LogitTensors(tuple(inputs[:1]), tuple(inputs[1:2]))),
            inputs[2],
            dropout=0.4,
            block=1,
            causal=True,
        )

    assert torch.autograd.gradcheck(run, (left_1HTK, right_1HKS, value_BHSE), fast_mode=True)


@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
def test_blockwise_softmax_in_bfloat16_is_near_float32(role: Role) -> None:
    config = SynthesizerMixtureConfig(heads=2, max_length=SHORT + 6, parts=("dot", "dense", "random"))
    layer = attentions.build(config, dim=DIM, role=role)
    x_BTD = torch.randn(2, SHORT + 6, DIM)
    expected = layer(x_BTD)[0]
    gradient = torch.autograd.grad(expected.square().mean(), list(layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        y_BTD = layer(x_BTD)[0]
        found = torch.autograd.grad(y_BTD.float().square().mean(), list(layer.parameters()))
    torch.testing.assert_close(y_BTD.float(), expected, atol=0.03, rtol=0.03)
    near, exact = (torch.cat([part.flatten() for part in parts]) for parts in (found, gradient))
    assert (near - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.skipif(naive_mode(), reason="Only the fast form has a memory bound.")
@pytest.mark.parametrize("role", [Role.ENCODER, Role.CAUSAL])
def test_no_tensor_has_all_logits(role: Role) -> None:
    config = SynthesizerMixtureConfig(heads=2, max_length=2048, parts=("dot", "dense"))
    layer = attentions.build(config, dim=DIM, role=role)
    assert measured(layer, 2048).largest <= BLOCK < 2 * 2048**2


@pytest.mark.parametrize("spread", [1.0, 30.0, 1000.0])
def test_logits_shared_by_rows_equal_separate_logits(spread: float) -> None:
    """Relative to the exponentials of padding, the exponentials of tokens may round to 0."""
    length, lengths = 70, torch.tensor([70, 40, 1, 0])
    logits_1HTS = (torch.randn(1, 2, length, length, dtype=torch.float64) * spread).requires_grad_()
    value_BHSE = torch.randn(4, 2, length, 3, dtype=torch.float64, requires_grad=True)
    pad_BS = torch.arange(length) >= lengths[:, None]

    def run(logits_BHTS: torch.Tensor) -> list[torch.Tensor]:
        y_BHTE = blockwise_softmax(LogitSpec(table, LogitTensors(by_both=(logits_BHTS,))), value_BHSE, pad_BS=pad_BS)
        return [y_BHTE, *torch.autograd.grad(y_BHTE.square().sum(), [logits_1HTS, value_BHSE])]

    for shared, own in zip(run(logits_1HTS), run(logits_1HTS.expand(4, -1, -1, -1)), strict=True):
        assert shared.isfinite().all()
        torch.testing.assert_close(shared, own, atol=1e-9, rtol=1e-9)
