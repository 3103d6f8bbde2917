"""Wrong layers, each caught by the law it breaks, so that no law passes whatever it is given."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from seqtk.attention import Attention, Role, StepState
from seqtk.attention.softmax import SoftmaxAttention, SoftmaxConfig
from seqtk.attention.synthesizer import SynthesizerRandom, SynthesizerRandomConfig
from seqtk.ops.cache import append
from seqtk.ops.dot_product import attend
from seqtk.ops.head_checkpoint import Projected, by_heads
from tests.laws.cases import prepare, sizes
from tests.laws.laws import LAWS


class IgnoresPadding(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        return super().forward(x_BTD, *rest)


class ZeroesPaddedValues(SoftmaxAttention):
    """Hides what padding holds but still counts it."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        return super().forward(x_BTD if pad_BS is None else x_BTD * ~pad_BS[..., None])


class SeesTheFuture(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        nothing = torch.zeros_like(x_BTD[..., 0], dtype=torch.bool)
        role, self.role = self.role, Role.ENCODER
        y_BTD = super().forward(x_BTD, *rest, pad_BS=nothing if pad_BS is None else pad_BS)
        self.role = role
        return y_BTD


class KnowsTheLength(SoftmaxAttention):
    """Scales by how long the whole row is, which no gradient shows."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0] / x_BTD.shape[1], None


class ForgetsItsOffset(SynthesizerRandom):
    """Reads row 0 of the matrix at every step (a public implementation does)."""

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        value_BHSE = append(state.dynamic["value"], self.split(self.value(x_B1D)))
        logits_1H1S = self.logits(x_B1D, rows=slice(0, 1), columns=value_BHSE.shape[2])
        return self.out(self.join(logits_1H1S.softmax(-1) @ value_BHSE)), state.advance({"value": value_BHSE})


class KeepsItsStateToItself(SoftmaxAttention):
    """Its cache is an attribute, which a beam search cannot reorder."""

    def start(self, batch: int, *rest: Any, **options: Any) -> StepState:
        self.state = super().start(batch, *rest, **options)
        return StepState()

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        if self.state.dynamic["key"] is not None:
            rows = torch.arange(len(x_B1D), device=x_B1D.device) % len(self.state.dynamic["key"])
            self.state = tree_map(lambda leaf: leaf if leaf is None else leaf[rows], self.state)
        y_B1D, self.state = super().step(x_B1D, self.state)
        return y_B1D, state


class MixesRowsOfTheBatch(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD - x_BTD[:, :1].mean(0), *rest, **options)


class NanWhereNothingIsSeen(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        query, key, value = (self.split(linear(x_BTD)) for linear in (self.query, self.key, self.value))
        logits_BHTS = query @ key.transpose(-1, -2)
        weights_BHTS = logits_BHTS.masked_fill(pad_BS[:, None, None], float("-inf")).softmax(-1)
        return self.out(self.join(weights_BHTS @ value)), None


class AddsUpInBfloat16(SoftmaxAttention):
    """Loses what is small beside a large sum."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        y_BTD, _ = super().forward(x_BTD, *rest, **options)
        return y_BTD if y_BTD.dtype is not torch.bfloat16 else (y_BTD + 512) - 512, None


class HidesAWeight(SoftmaxAttention):
    """A weight that is no parameter is lost in a checkpoint."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.hidden = torch.randn(())

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0] * self.hidden, None


class HasAnIdleWeight(SoftmaxAttention):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idle = torch.nn.Parameter(torch.zeros(3))


class BelittlesItsCost(SoftmaxAttention):
    subquadratic = True


class CutsTheSquareUp(SoftmaxAttention):
    """None of its tensors is large; together they are as many weights as ever, and all wait for the backward pass."""

    subquadratic = True

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        query, key, value = (self.split(linear(x_BTD)) for linear in (self.query, self.key, self.value))
        seen = None if pad_BS is None else ~pad_BS[:, None, None]
        parts = query.split(16, dim=2)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel makes no weights
            return self.out(self.join(torch.cat([attend(part, key, value, bias=seen) for part in parts], dim=2))), None


class CutsOffWhatIsTooLong(SynthesizerRandom):
    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        limit = self.config.max_length
        return super().forward(x_BTD[:, :limit], pad_BS=None if pad_BS is None else pad_BS[:, :limit])


class ReportsATensor(SoftmaxAttention):
    def monitored(self) -> dict[str, Any]:
        return {"gate": self.out.bias.mean()}


class DropsOutWhenEvaluated(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return functional.dropout(super().forward(x_BTD, *rest, **options)[0], self.config.dropout), None


class NeverDropsOut(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        with torch.random.fork_rng():
            training, self.training = self.training, False
            y_BTD = super().forward(x_BTD, *rest, **options)
        self.training = training
        return y_BTD


class DrawsWhenEvaluated(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0] + 1e-9 * torch.randn_like(x_BTD), None


class ForgetsToScale(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        query, key, value = (self.split(linear(x_BTD)) for linear in (self.query, self.key, self.value))
        bias = None if pad_BS is None else ~pad_BS[:, None, None]
        return self.out(self.join(attend(query, key, value, bias=bias, scale=1.0))), None


class StepsInAnotherPrecision(SoftmaxAttention):
    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        y_B1D, state = super().step(x_B1D, state)
        return y_B1D.to(torch.bfloat16).to(y_B1D.dtype), state


class ReadsAWeightUnsaid(SoftmaxAttention):
    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        read = by_heads(lambda _, x_BTd: x_BTd * self.key.weight.mean(), Projected(x_BTD, self.query), heads=self.heads)
        return super().forward(x_BTD, *rest, pad_BS=pad_BS)[0] + read, None


ENCODER, CAUSAL = Role.ENCODER, Role.CAUSAL
MUTANTS: list[tuple[type[Attention], Role, str]] = [
    (IgnoresPadding, ENCODER, "content_of_padding_never_leaks"),
    (IgnoresPadding, ENCODER, "a_row_alone_equals_its_row_in_the_batch"),
    (ZeroesPaddedValues, ENCODER, "more_padding_changes_nothing"),
    (SeesTheFuture, CAUSAL, "future_is_invisible"),
    (KnowsTheLength, CAUSAL, "future_is_invisible"),
    (KnowsTheLength, ENCODER, "more_padding_changes_nothing"),
    (ForgetsItsOffset, CAUSAL, "stepping_equals_parallel_fp64"),
    (ForgetsItsOffset, CAUSAL, "stepping_equals_parallel_fp32"),
    (ForgetsItsOffset, CAUSAL, "stepping_equals_the_default_step"),
    (StepsInAnotherPrecision, CAUSAL, "stepping_equals_parallel_fp32"),
    (KeepsItsStateToItself, CAUSAL, "reordering_the_state_reorders_the_future"),
    (MixesRowsOfTheBatch, ENCODER, "a_row_alone_equals_its_row_in_the_batch"),
    (NanWhereNothingIsSeen, ENCODER, "seeing_nothing_gives_zero"),
    (AddsUpInBfloat16, ENCODER, "bfloat16_stays_near_float32"),
    (HidesAWeight, ENCODER, "weights_make_the_round_trip"),
    (HasAnIdleWeight, ENCODER, "every_parameter_is_used"),
    (BelittlesItsCost, CAUSAL, "what_is_called_subquadratic_makes_no_square"),
    (CutsTheSquareUp, ENCODER, "what_is_called_subquadratic_makes_no_square"),
    (CutsOffWhatIsTooLong, ENCODER, "too_long_is_refused_by_name"),
    (ReadsAWeightUnsaid, ENCODER, "long_inputs_are_computed_as_short_ones"),
    (ReportsATensor, ENCODER, "what_it_reports_is_plain"),
    (DropsOutWhenEvaluated, ENCODER, "dropout_acts_in_training_only"),
    (NeverDropsOut, ENCODER, "dropout_acts_in_training_only"),
    (DrawsWhenEvaluated, ENCODER, "evaluation_is_deterministic"),
    (ForgetsToScale, ENCODER, "it_computes_the_equations"),
]


def make_mutant(
    mutant: type[Attention],
    role: Role,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **fields: Any,
) -> Attention:
    config: Callable[..., Any] = SoftmaxConfig
    if issubclass(mutant, SynthesizerRandom):
        config = partial(SynthesizerRandomConfig, max_length=12)
    return prepare(lambda: mutant(config(heads=2, **fields), **sizes(role)), device, dtype=dtype, seed=seed)


@pytest.mark.parametrize(
    ("mutant", "role", "law"),
    [pytest.param(*row, id=f"{row[0].__name__}-{row[1].name}-{row[2]}") for row in MUTANTS],
)
def test_law_catches_mutant(mutant: type[Attention], role: Role, law: str, device: torch.device) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        LAWS[law][0](partial(make_mutant, mutant, role), device)


@pytest.mark.parametrize("law", LAWS)
def test_every_law_catches_something_and_lets_the_right_layer_pass(law: str, device: torch.device) -> None:
    roles = [role for _, role, caught_by in MUTANTS if caught_by == law]
    assert roles
    for right in (SoftmaxAttention, SynthesizerRandom):
        LAWS[law][0](partial(make_mutant, right, roles[0]), device)
