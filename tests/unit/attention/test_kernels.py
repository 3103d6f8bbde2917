"""Tests of layers with feature maps. The tests that all attention layers share are in tests/laws."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Attention, Role, attentions
from seqtk.attention.feedforward_kernel import FeedForwardKernelAttention, Stage
from seqtk.attention.kernel import KernelAttention
from seqtk.attention.performer import PerformerAttention, log_features, orthogonal_gaussian
from seqtk.config.schema import from_dict
from seqtk.testing.memory import measured
from seqtk.utils.errors import UserError
from tests.unit.attention.helpers import steps_and_state_sizes

DIM = 16
KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosformer": {"max_length": 4096},
    "performer": {},
    "feedforward_kernel": {"depth": 2},
}


def build(kind: str, role: Role = Role.ENCODER, *, dim: int = DIM, **fields: Any) -> Any:
    config = from_dict(attentions.config_type(kind), {"heads": 2, **KINDS.get(kind, {}), **fields})
    return attentions.build(config, dim=dim, role=role).eval()


def every_kind(*roles: Role) -> list[Any]:
    return [pytest.param(kind, role, id=f"{kind}-{role.name}") for kind in KINDS for role in roles]


def run(layer: Attention, x_BTD: Tensor, memory_BSD: Tensor, pad_BS: Tensor | None = None) -> Tensor:
    y_BTD: Tensor = layer(x_BTD, memory_BSD if layer.role is Role.CROSS else None, pad_BS=pad_BS)[0]
    return y_BTD


def from_all_pairs(layer: KernelAttention, x_BTD: Tensor, memory_BSD: Tensor, pad_BS: Tensor) -> Tensor:
    """Computes the output of the layer with the T × S matrix of weights."""
    source = memory_BSD if layer.role is Role.CROSS else x_BTD
    key_BHSR, shift = layer.key_features(layer.split(layer.key(source)), pad_BS=pad_BS)
    query_BHTR = layer.query_features(layer.split(layer.query(x_BTD)), shift_BH1R=shift)
    weights_BHTS = query_BHTR @ key_BHSR.transpose(-1, -2)
    if layer.role is Role.CAUSAL:
        weights_BHTS = weights_BHTS.tril()
    y_BHTE = weights_BHTS @ layer.split(layer.value(source)) / layer.denominator(weights_BHTS.sum(-1, keepdim=True))
    return layer.out(layer.join(y_BHTE))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "role"), every_kind(*Role))
def test_sums_over_keys_equal_the_full_weight_matrix(kind: str, role: Role) -> None:
    layer = build(kind, role).double()
    x_BTD, memory_BSD = torch.randn(2, 150, DIM).double(), torch.randn(2, 150, DIM).double()
    pad_BS = torch.arange(150)[None] >= torch.tensor([[150], [131]])
    expected = from_all_pairs(layer, x_BTD, memory_BSD, pad_BS)
    torch.testing.assert_close(run(layer, x_BTD, memory_BSD, pad_BS), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("kind", "role"), every_kind(Role.CAUSAL, Role.CROSS))
def test_decoding_steps_equal_forward_with_constant_state(kind: str, role: Role) -> None:
    layer = build(kind, role)
    x_BTD, memory_BSD = torch.randn(2, 200, DIM), torch.randn(2, 9, DIM)
    state = layer.start(2, memory_BSD if role is Role.CROSS else None)
    y_BTD, sizes = steps_and_state_sizes(layer, x_BTD, state)
    torch.testing.assert_close(y_BTD, run(layer, x_BTD, memory_BSD), atol=1e-5, rtol=1e-5)
    assert len(sizes) == 1


def test_largest_tensor_detects_a_quadratic_matrix() -> None:
    assert measured(build("synthesizer_random", max_length=64), 64).largest >= 2 * 64**2


@pytest.mark.slow  # tracing
@pytest.mark.parametrize(("kind", "role"), every_kind(*Role))
def test_several_chunks_compile_into_one_graph(kind: str, role: Role) -> None:
    layer = build(kind, role)
    x_BTD, memory_BSD = torch.randn(2, 70, DIM), torch.randn(2, 70, DIM)
    pad_BS = torch.arange(70)[None] >= torch.tensor([[70], [5]])
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, x_BTD, memory_BSD, pad_BS), run(layer, x_BTD, memory_BSD, pad_BS))


@pytest.mark.parametrize(
    ("kind", "fields", "own"),
    [
        ("linear", {}, 0),
        ("cosformer", {}, 0),
        ("performer", {}, 0),
        ("feedforward_kernel", {"kernel": "ffn", "depth": 1}, 8 * 64**2),
        ("feedforward_kernel", {"kernel": "linear", "depth": 3}, 3 * 8 * 64**2),
        ("feedforward_kernel", {"kernel": "glu", "depth": 1}, 2 * 8 * 64**2),
        ("feedforward_kernel", {"kernel": "oglu", "depth": 2}, 2 * 2 * 8 * 64**2),
        ("feedforward_kernel", {"kernel": "aoglu", "depth": 3}, 3 * 8 * (64**2 + 64**2 // 2)),
    ],
)
def test_parameter_count_at_width_512_equals_formula(kind: str, fields: dict[str, Any], own: int) -> None:
    with torch.device("meta"):
        layer = build(kind, dim=512, heads=8, bias=False, **fields)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 512**2 + own


def test_random_features_estimate_the_softmax_kernel() -> None:
    """The mean over draws is exp(q · k / √E), within four standard errors. Orthogonal features vary less."""
    torch.manual_seed(0)
    width, draws = 8, 20_000
    query, key = torch.randn(5, width) / 2, torch.randn(5, width) / 2
    expected = (query @ key.T / math.sqrt(width)).exp()

    def estimates(rows: Tensor) -> Tensor:
        """Returns one estimate of exp(q · k / √E) for each group of `width` random rows."""
        features = (log_features(x, rows).exp().view(-1, draws, width).transpose(0, 1) for x in (query, key))
        of_queries, of_keys = features
        return of_queries @ of_keys.transpose(-1, -2) / width

    orthogonal = estimates(orthogonal_gaussian(draws * width, width))
    independent = estimates(torch.randn(draws * width, width))
    for sample in (orthogonal, independent):
        error = sample.std(0) / math.sqrt(draws)
        assert ((sample.mean(0) - expected).abs() < 4 * error).all()
    assert (orthogonal.var(0) / independent.var(0)).mean() < 0.95


def test_projection_rows_are_orthogonal_with_gaussian_norms() -> None:
    rows = orthogonal_gaussian(20, 8)
    products = rows[:8] @ rows[:8].T
    torch.testing.assert_close(products, products.diagonal().diag(), atol=1e-4, rtol=0)
    lengths = orthogonal_gaussian(4000, 8).square().sum(-1)
    assert abs(float(lengths.mean()) - 8) < 0.4  # chi-squared: mean 8, variance 16
    assert abs(float(lengths.var()) - 16) < 3


@pytest.mark.parametrize("role", Role)
def test_many_features_approach_softmax_attention(role: Role) -> None:
    torch.manual_seed(0)
    exact = attentions.build(from_dict(attentions.config_type("softmax"), {"heads": 2}), dim=DIM, role=role).eval()
    x_BTD, memory_BSD = torch.randn(2, 20, DIM) / 2, torch.randn(2, 20, DIM) / 2
    pad_BS = torch.arange(20)[None] >= torch.tensor([[20], [13]])
    expected = run(exact, x_BTD, memory_BSD, pad_BS)

    def error(features: int) -> float:
        layer = build("performer", role, features=features)
        layer.load_state_dict({**layer.state_dict(), **exact.state_dict()})
        with torch.no_grad():
            return float((run(layer, x_BTD, memory_BSD, pad_BS) - expected).norm() / expected.norm())

    assert error(20_000) < 0.03 < error(8)


@pytest.mark.parametrize("role", Role)
def test_float32_equals_float64_for_large_exponents(role: Role) -> None:
    """Without a shift, the exponents would overflow float32."""
    layer = build("performer", role, features=64)
    with torch.no_grad():
        layer.query.weight.mul_(8)
        layer.key.weight.mul_(6)
    x_BTD, memory_BSD = torch.randn(2, 20, DIM), torch.randn(2, 20, DIM)
    y_BTD = run(layer, x_BTD, memory_BSD)
    assert log_features(layer.split(layer.query(x_BTD)), layer.projection_RE).abs().max() > 88
    layer.double()
    torch.testing.assert_close(y_BTD.double(), run(layer, x_BTD.double(), memory_BSD.double()), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("role", [Role.ENCODER, Role.CROSS])
def test_float32_equals_float64_for_distant_keys(role: Role) -> None:
    """All keys are far from the origin. Outputs and gradients are compared."""
    layer = build("performer", role, features=64)
    x_BTD, memory_BSD = torch.randn(2, 20, DIM), torch.randn(2, 20, DIM)
    with torch.no_grad():
        layer.key.bias.fill_(40)
    outputs = []
    for dtype in (torch.float32, torch.float64):
        y_BTD = run(layer.to(dtype), x_BTD.to(dtype), memory_BSD.to(dtype))
        (gradient,) = torch.autograd.grad(y_BTD.square().sum(), layer.value.weight)
        outputs.append((y_BTD.double(), gradient.double()))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-3, rtol=1e-2)


def test_causal_keys_that_underflow_give_no_nan() -> None:
    layer = build("performer", Role.CAUSAL, features=64)
    with torch.no_grad():
        layer.key.bias.fill_(1000)
    y_BTD = layer(torch.randn(2, 20, DIM))[0]
    y_BTD.sum().backward()
    assert y_BTD.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_features_are_redrawn_from_the_generator() -> None:
    layers = [build("performer", redraw_every=3) for _ in range(2)]
    first = layers[0].projection_RE.clone()
    for layer in layers:
        layer.redraw(torch.Generator().manual_seed(3))
    assert not torch.equal(layers[0].projection_RE, first)
    assert torch.equal(layers[0].projection_RE, layers[1].projection_RE)


def test_projection_is_saved_and_not_trained() -> None:
    layer: PerformerAttention = build("performer")
    assert layer.projection_RE.shape == (int(8 * math.log(8)), 8)
    assert "projection_RE" in layer.state_dict()
    assert "projection_RE" not in dict(layer.named_parameters())


def test_cosformer_of_huge_max_length_ignores_distances() -> None:
    far, near = build("cosformer", max_length=10**7).double(), build("cosformer", max_length=12).double()
    near.load_state_dict(far.state_dict())
    x_BTD = torch.randn(2, 12, DIM).double()
    query, key, value = (far.split(linear(x_BTD)) for linear in (far.query, far.key, far.value))
    weights_BHTS = query.relu() @ key.relu().transpose(-1, -2)
    y_BHTE = weights_BHTS @ value / weights_BHTS.sum(-1, keepdim=True).clamp(min=1e-6)
    torch.testing.assert_close(far(x_BTD)[0], far.out(far.join(y_BHTE)))
    assert not torch.allclose(far(x_BTD)[0], near(x_BTD)[0], atol=1e-3)


@pytest.mark.parametrize(("kernel", "depth"), [("linear", 1), ("oglu", 2), ("aoglu", 3)])
def test_penalty_is_the_distance_from_orthogonality(kernel: str, depth: int) -> None:
    layer: FeedForwardKernelAttention = build("feedforward_kernel", kernel=kernel, depth=depth, orthogonality=0.5)
    penalty = layer.aux_loss()
    assert penalty is not None
    assert penalty.item() < 1e-10
    expected = 0.0
    for stage in layer.stages:
        assert isinstance(stage, Stage)
        torch.nn.init.normal_(stage.matrix_HEE)
        for matrix in stage.matrix_HEE.detach():
            expected += 0.5 * float((matrix @ matrix.T - torch.eye(8)).square().sum()) / (2 * 8 * 8)
    penalty = layer.aux_loss()
    assert penalty is not None
    torch.testing.assert_close(penalty.item(), expected, atol=1e-4, rtol=1e-5)
    penalty.backward()
    gradients = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert gradients == {f"stages.{stage}.matrix_HEE" for stage in range(depth)}


def test_no_penalty_without_orthogonal_matrices() -> None:
    assert build("feedforward_kernel", kernel="ffn").aux_loss() is None
    assert build("feedforward_kernel", kernel="glu").aux_loss() is None
    assert build("feedforward_kernel", kernel="oglu", orthogonality=0).aux_loss() is None


def test_kernel_dropout_acts_in_training_only() -> None:
    layer, without = build("feedforward_kernel", kernel_dropout=0.5), build("feedforward_kernel")
    without.load_state_dict(layer.state_dict())
    x_BTD = torch.randn(2, 9, DIM)
    assert torch.equal(layer(x_BTD)[0], without(x_BTD)[0])
    assert not torch.allclose(layer.train()(x_BTD)[0], without(x_BTD)[0], atol=1e-3)


def test_dropout_does_not_renormalize_the_weights() -> None:
    """If all values are 1, an output is the sum of the weights that dropout keeps. Its mean is 1, but it varies."""
    layer = build("linear", dropout=0.5, bias=False).train()
    with torch.no_grad():
        layer.out.weight.copy_(torch.eye(DIM))
        layer.value.weight.zero_()
        layer.value.weight[:, 0] = 1
    x_BTD = torch.randn(1, 40, DIM)
    x_BTD[..., 0] = 1
    sums = torch.stack([layer(x_BTD)[0][0, 0].detach() for _ in range(200)])
    assert abs(float(sums.mean()) - 1) < 0.05
    assert sums.std() > 0.05


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("performer", "features", 0),
        ("performer", "redraw_every", 0),
        ("feedforward_kernel", "depth", 0),
        ("feedforward_kernel", "depth", 4),
        ("feedforward_kernel", "orthogonality", -1.0),
        ("feedforward_kernel", "kernel_dropout", 1.0),
        ("cosformer", "max_length", 0),
    ],
)
def test_values_out_of_range_are_refused(kind: str, key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{key}="):
        build(kind, **{key: value})
