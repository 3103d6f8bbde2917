"""Faulty layers, each with the law case that detects the fault.

A mutant of the library replaces a part of the source code of one function while the law runs. If this part no longer
exists, the test of the mutant fails. Then update the mutant.
"""

import contextlib
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from seqtk.attention import Attention, Role, StepState
from seqtk.attention.softmax import SoftmaxAttention, SoftmaxConfig
from seqtk.attention.synthesizer import Synthesizer, SynthesizerRandomConfig
from seqtk.attention.transformer_xl import TransformerXLAttention, TransformerXLConfig
from seqtk.ops.cache import append
from seqtk.ops.dispatch import naive_mode
from seqtk.ops.dot_product import attend
from seqtk.ops.head_checkpoint import LazyProjection, checkpoint_over_heads
from seqtk.testing.subject import SIZES, Subject


@dataclass(frozen=True)
class SourceMutant:
    """A change to one function of the library."""

    fault: str
    function: str
    """module:qualified.name"""
    old: str
    new: str
    case: str
    """The law case that fails, as `str(LawCase)`."""

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Applies the change within the `with` block. It changes the function in place, for all importers."""
        module, _, name = self.function.partition(":")
        found = inspect.unwrap(functools.reduce(getattr, name.split("."), importlib.import_module(module)))
        function = getattr(found, "__func__", found)
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise ValueError(f"{self.function} must contain this text exactly once: {self.old}")
        lines = source.replace(self.old, self.new).splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("def "))
        namespace: dict[str, Any] = {}
        exec(compile("\n".join(lines[start:]), self.function, "exec"), function.__globals__, namespace)
        before = function.__code__
        function.__code__ = next(iter(namespace.values())).__code__
        try:
            yield
        finally:
            function.__code__ = before


SOURCE_MUTANTS = [
    SourceMutant(
        "The backward pass of the scan drops its second half, the sums over later chunks",
        "seqtk.ops.scan:_CausalSums.backward",
        "(query_GNCR.mT @ grad_GNCE).flip(1)",
        "(0 * query_GNCR.mT @ grad_GNCE).flip(1)",
        "linear-causal-long-gradients_equal_finite_differences",
    ),
    SourceMutant(
        "The scan sums in bfloat16",
        "seqtk.ops.scan:causal_sums",
        "x.to(dtype) for x",
        "x.to(torch.bfloat16 if torch.is_autocast_enabled('cpu') else dtype) for x",
        "linear-causal-long-sums_stay_in_float32",
    ),
    SourceMutant(
        "Linear attention sums keys and values in bfloat16",
        "seqtk.attention.kernel:product",
        "enabled=False",
        "enabled=torch.is_autocast_enabled('cpu')",
        "linear-encoder-long-sums_stay_in_float32",
    ),
    SourceMutant(
        "The blockwise softmax scales dropout wrongly in backward",
        "seqtk.ops.blockwise_softmax:_InBlocks.backward",
        "= plan.dropped(weights_grad_BHCS, bits_BHCS)",
        "= (1 - plan.dropout) * plan.dropped(weights_grad_BHCS, bits_BHCS)",
        "synthesizer_dense-causal-long-gradients_equal_finite_differences",
    ),
    SourceMutant(
        "The blockwise softmax uses the same dropout seed in every block",
        "seqtk.ops.blockwise_softmax:_Plan.bits",
        "self.seed + first",
        "self.seed",
        "synthesizer_dense-causal-long-dropout_is_unbiased_and_seeded",
    ),
    SourceMutant(
        "A mixture detaches the weight of logits from a table",
        "seqtk.ops.blockwise_softmax:LogitSpec.scaled",
        "torch.as_tensor(weight,",
        "torch.as_tensor(weight.detach(),",
        "synthesizer_mixture-all-encoder-long-gradients_equal_finite_differences",
    ),
    SourceMutant(
        "Nyström's dropout is active in evaluation on long inputs",
        "seqtk.attention.nystrom:NystromAttention.mix_heads",
        "dropout=self.active_dropout",
        "dropout=self.config.dropout if query_BHTE.shape[2] > 128 else self.active_dropout",
        "nystrom-encoder-long-evaluation_is_deterministic",
    ),
    SourceMutant(
        "The last blocks of a window do not see the block before them",
        "seqtk.ops.block_pattern:WindowSpec.runs",
        "yield BlockRange(end, length, length - end, back)",
        "yield BlockRange(end, length, length - end, back if length < 64 else 0)",
        "sliding_window-wide-causal-long-equals_the_reference",
    ),
    SourceMutant(
        "BigBird also chooses random blocks in padding",
        "seqtk.attention.bigbird:BigBirdAttention._seen_blocks",
        "(~pad_BT).sum(1)",
        "(pad_BT | True).sum(1)",
        "bigbird-encoder-long-more_padding_changes_nothing",
    ),
    SourceMutant(
        "The backward pass of AFT's cumulative sums uses the order of the forward pass",
        "seqtk.ops.aft:_Cumulative.backward",
        "reversed(_rounds(scale_TD.shape[-2]))",
        "_rounds(scale_TD.shape[-2])",
        "aft_simple-causal-long-gradients_equal_finite_differences",
    ),
    SourceMutant(
        "Reformer's state counts positions up to 64 only",
        "seqtk.attention.reformer:ReformerAttention.step",
        "torch.ones_like(bucket_BHR1))",
        "torch.ones_like(bucket_BHR1)).clamp(max=64)",
        "reformer-causal-long-stepping_equals_the_parallel_form",
    ),
    SourceMutant(
        "Reformer computes hashes in bfloat16",
        "seqtk.attention.reformer:ReformerAttention._buckets",
        "enabled=False",
        "enabled=torch.is_autocast_enabled('cpu')",
        "reformer-encoder-long-sums_stay_in_float32",
    ),
    SourceMutant(
        "Layers with dropout recompute heads in backward, with a different mask",
        "seqtk.attention.headwise:HeadwiseAttention.is_random.fget",
        "self.active_dropout > 0",
        "self.active_dropout > 1",
        "sliding_window-encoder-short-heads_in_groups_give_the_same",
    ),
    SourceMutant(
        "Transformer-XL keeps the oldest positions as its memory",
        "seqtk.attention.transformer_xl:TransformerXLAttention.forward",
        "x_BSD[:, -self.memory_length :].detach()",
        "x_BSD[:, : self.memory_length].detach()",
        "transformer_xl-short-causal-long-segments_equal_the_whole",
    ),
    SourceMutant(
        "Luna passes the memory of another row to the next layer",
        "seqtk.attention.luna:Luna.forward",
        "slots_BPD + packed_BPD",
        "slots_BPD + packed_BPD.roll(1, 0)",
        "luna-encoder-short-a_chain_of_layers_keeps_rows_apart",
    ),
    SourceMutant(
        "Longformer's global positions see padding",
        "seqtk.attention.windows:LongformerAttention._attend_from_global",
        "seen = None if pad_BT is None else ~pad_BT[:, None, None]",
        "seen = None",
        "longformer-encoder-long-padding_never_leaks",
    ),
    SourceMutant(
        "The feed-forward kernel ignores a low-rank gate if its rank is above 1",
        "seqtk.attention.feedforward_kernel:Stage.forward",
        "if self.gate is None:",
        "if self.gate is None or (len(self.gate) == 2 and self.gate[0].shape[2] > 1):",
        "feedforward_kernel-aoglu-2-encoder-long-equals_the_reference",
    ),
    SourceMutant(
        "Rotary positions restart at 128",
        "seqtk.ops.rotary:rotate",
        "positions_BT[:, None, :, None]",
        "(positions_BT % 128)[:, None, :, None]",
        "softmax-rotary-encoder-long-equals_the_reference",
    ),
]


class ReturnsOneChannel(SoftmaxAttention):
    """Returns outputs of width 1, which are broadcast wherever they are added."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.out = torch.nn.Linear(self.dim, 1)


class ReturnsNoState(SoftmaxAttention):
    """Returns only the outputs."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0]


class StartsWithADict(SoftmaxAttention):
    """Starts with a dict, whose tensors beam search would copy at every step."""

    def start(self, batch: int, *rest: Any, **options: Any) -> Any:
        return super().start(batch, *rest, **options).dynamic


class IgnoresPadding(SoftmaxAttention):
    """Attends to padding."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        return super().forward(x_BTD, *rest)


class ZeroesPadding(SoftmaxAttention):
    """Sets padding to zero but still attends to it."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        return super().forward(x_BTD if pad_BS is None else x_BTD * ~pad_BS[..., None])


class SeesTheFuture(SoftmaxAttention):
    """Attends to later positions."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        nothing = torch.zeros_like(x_BTD[..., 0], dtype=torch.bool)
        role, self.role = self.role, Role.ENCODER
        y_BTD = super().forward(x_BTD, *rest, pad_BS=nothing if pad_BS is None else pad_BS)
        self.role = role
        return y_BTD


class DividesByLength(SoftmaxAttention):
    """Divides by the padded length, which does not change gradients between positions."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0] / x_BTD.shape[1], None


class StepsAtPositionZero(Synthesizer):
    """Reads row 0 of its matrix at every step, as a public implementation does."""

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        value_BHSE = append(state.dynamic["value"], self.split(self.value(x_B1D)))
        logits_1H1S = self.logits(x_B1D, rows=slice(0, 1), columns=value_BHSE.shape[2]).logits(value_BHSE.shape[2])
        return self.out(self.join(logits_1H1S.softmax(-1) @ value_BHSE)), state.advance({"value": value_BHSE})


class StepsInBfloat16(SoftmaxAttention):
    """Rounds the output of each step."""

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        y_B1D, state = super().step(x_B1D, state)
        return y_B1D.to(torch.bfloat16).to(y_B1D.dtype), state


class HidesItsState(SoftmaxAttention):
    """Keeps its cache in an attribute, which beam search cannot reorder."""

    def start(self, batch: int, *rest: Any, **options: Any) -> StepState:
        self.state = super().start(batch, *rest, **options)
        return StepState()

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        if self.state.dynamic["key"] is not None:
            rows = torch.arange(len(x_B1D), device=x_B1D.device) % len(self.state.dynamic["key"])
            self.state = tree_map(lambda leaf: leaf if leaf is None else leaf[rows], self.state)
        y_B1D, self.state = super().step(x_B1D, self.state)
        return y_B1D, state


class AppendsInPlace(SoftmaxAttention):
    """Changes its input state in place."""

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        if state.dynamic["key"] is not None:
            state.dynamic["key"].mul_(1.5)
        return super().step(x_B1D, state)


class ReturnsAState(SoftmaxAttention):
    """Returns a state although its scope is NONE."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        y_BTD, _ = super().forward(x_BTD, *rest, **options)
        return y_BTD, y_BTD


class PutsHeadsFirst(TransformerXLAttention):
    """Returns a recurrent state with the heads in the first dimension."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, state: Any = None) -> Any:
        state = None if state is None else state.permute(1, 2, 0, 3).flatten(2)
        y_BTD, state = super().forward(x_BTD, *rest, pad_BS=pad_BS, state=state)
        return y_BTD, state.unflatten(2, (2, -1)).permute(2, 0, 1, 3)


class CountsPositions(TransformerXLAttention):
    """Returns a number as a part of its recurrent state."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, state: Any = None) -> Any:
        memory, count = (None, 0) if state is None else state
        y_BTD, memory = super().forward(x_BTD, *rest, pad_BS=pad_BS, state=memory)
        return y_BTD, (memory, count + x_BTD.shape[1])


class MixesRows(SoftmaxAttention):
    """Subtracts a mean over the batch."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD - x_BTD[:, :1].mean(0), *rest, **options)


class NanForPadding(SoftmaxAttention):
    """Computes the softmax of a row of minus infinities."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        query, key, value = (self.split(linear(x_BTD)) for linear in (self.query, self.key, self.value))
        logits_BHTS = query @ key.transpose(-1, -2)
        weights_BHTS = logits_BHTS.masked_fill(pad_BS[:, None, None], float("-inf")).softmax(-1)
        return self.out(self.join(weights_BHTS @ value)), None


class LosesBits(SoftmaxAttention):
    """Adds a large number in bfloat16 and subtracts it again."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        y_BTD, _ = super().forward(x_BTD, *rest, **options)
        return y_BTD if y_BTD.dtype is not torch.bfloat16 else (y_BTD + 512) - 512, None


class HidesAWeight(SoftmaxAttention):
    """Has a weight that is not a parameter, so that checkpoints do not contain it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.hidden = torch.randn(())

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0] * self.hidden, None


class AveragesItsInputs(SoftmaxAttention):
    """Updates a moving average in `forward`, which activation checkpointing runs twice."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("average", torch.zeros(self.dim))

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        if self.training:
            self.average.lerp_(x_BTD.detach().mean((0, 1)), 0.1)
        return super().forward(x_BTD, *rest, **options)


class HasAnIdleWeight(SoftmaxAttention):
    """Has a parameter that it does not use."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idle = torch.nn.Parameter(torch.zeros(3))


class ClaimsLinearMemory(SoftmaxAttention):
    """Declares `subquadratic` although a causal mask with padding is a T × T matrix."""

    subquadratic = True


class KeepsAllWeights(SoftmaxAttention):
    """Splits its T × T weights into small tensors but keeps all of them for the backward pass."""

    subquadratic = True

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        query, key, value = (self.split(linear(x_BTD)) for linear in (self.query, self.key, self.value))
        seen = None if pad_BS is None else ~pad_BS[:, None, None]
        parts = query.split(16, dim=2)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel keeps no weights
            return self.out(self.join(torch.cat([attend(part, key, value, bias=seen) for part in parts], dim=2))), None


class TruncatesLongInputs(Synthesizer):
    """Truncates inputs to max_length."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        limit = self.config.max_length
        return super().forward(x_BTD[:, :limit], pad_BS=None if pad_BS is None else pad_BS[:, :limit])


class ReportsATensor(SoftmaxAttention):
    """Reports a tensor where a float is expected."""

    def monitored(self) -> dict[str, Any]:
        return {"gate": self.out.bias.mean()}


class PenalizesEachPosition(SoftmaxAttention):
    """Has one penalty for each position instead of their mean."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        self.penalty = x_BTD.square().mean(2)
        return super().forward(x_BTD, *rest, **options)

    def aux_loss(self) -> Tensor | None:
        return getattr(self, "penalty", None)


class DropsInEvaluation(SoftmaxAttention):
    """Applies dropout also in eval mode."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return functional.dropout(super().forward(x_BTD, *rest, **options)[0], self.config.dropout), None


class IgnoresDropout(SoftmaxAttention):
    """Has the setting `dropout` but no dropout."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        training, self.training = self.training, False
        y_BTD = super().forward(x_BTD, *rest, **options)
        self.training = training
        return y_BTD


class DropsWithoutScaling(SoftmaxAttention):
    """Forgets to divide by 1 - dropout."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        scale = 1 - self.config.dropout if self.training else 1
        return super().forward(x_BTD, *rest, **options)[0] * scale, None


class RandomInEvaluation(SoftmaxAttention):
    """Adds a little noise to its output."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0] + 1e-9 * torch.randn_like(x_BTD), None


class DoesNotScale(SoftmaxAttention):
    """Does not divide the logits by √E."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        query, key, value = (self.split(linear(x_BTD)) for linear in (self.query, self.key, self.value))
        bias = None if pad_BS is None else ~pad_BS[:, None, None]
        return self.out(self.join(attend(query, key, value, bias=bias, scale=1.0))), None


class DetachesValues(SoftmaxAttention):
    """Detaches a part of the output from the graph."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        y_BTD, state = super().forward(x_BTD, *rest, **options)
        return y_BTD + (0.1 * x_BTD).detach(), state


class ReadsAWeightSilently(SoftmaxAttention):
    """Uses a weight that `extra_params` does not list, so that groups of heads lose its gradient."""

    def forward(self, x_BTD: Tensor, *rest: Any, pad_BS: Any = None, **_: Any) -> Any:
        read = checkpoint_over_heads(
            lambda _, x_BTd: x_BTd * self.key.weight.mean(), LazyProjection(x_BTD, self.query), heads=self.heads
        )
        return super().forward(x_BTD, *rest, pad_BS=pad_BS)[0] + read, None


class ReadsAWeightSilentlyIfLong(ReadsAWeightSilently):
    """Loses the gradient of a weight on very long inputs only, and declares `subquadratic`."""

    subquadratic = True


class DiffersInNaiveMode(SoftmaxAttention):
    """Scales its output differently with naive operations."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        return super().forward(x_BTD, *rest, **options)[0] * (1.01 if naive_mode() else 1), None


class BranchesOnData(SoftmaxAttention):
    """Branches in Python on the value of a tensor, which breaks the graph."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        y_BTD, state = super().forward(x_BTD, *rest, **options)
        return (y_BTD if x_BTD.sum() > 0 else 1 * y_BTD), state


class DrawsNothingInGraphs(SoftmaxAttention):
    """Adds noise in training, which is a constant in a compiled graph."""

    def forward(self, x_BTD: Tensor, *rest: Any, **options: Any) -> Any:
        y_BTD, state = super().forward(x_BTD, *rest, **options)
        noise = torch.rand(()) if self.training and not torch.compiler.is_compiling() else 0.5
        return y_BTD + noise, state


@dataclass(frozen=True)
class ClassMutant:
    """A layer that breaks a law. The docstring of the layer describes the fault."""

    layer: type[Attention]
    role: Role
    law: str
    size: str = "short"

    @property
    def fault(self) -> str:
        return (self.layer.__doc__ or "").strip().rstrip(".")

    @property
    def subject(self) -> Subject:
        return subject_of(self.layer, self.role, self.size)


def subject_of(layer: type[Attention], role: Role, size: str) -> Subject:
    """Returns the subject for a subclass of softmax attention, Transformer-XL or the random Synthesizer."""
    config: Any = SoftmaxConfig(heads=2)
    if issubclass(layer, TransformerXLAttention):
        config = TransformerXLConfig(heads=2)
    if issubclass(layer, Synthesizer):
        config = SynthesizerRandomConfig(heads=2, max_length=SIZES[size].settings["max_length"])
    return Subject(layer, config, role, SIZES[size], bfloat16_error=0.003)


CLASS_MUTANTS = [
    ClassMutant(ReturnsOneChannel, Role.ENCODER, "outputs_have_the_shape_of_inputs"),
    ClassMutant(ReturnsNoState, Role.ENCODER, "outputs_have_the_shape_of_inputs"),
    ClassMutant(StartsWithADict, Role.CAUSAL, "outputs_have_the_shape_of_inputs"),
    ClassMutant(IgnoresPadding, Role.ENCODER, "padding_never_leaks"),
    ClassMutant(IgnoresPadding, Role.ENCODER, "a_row_alone_equals_the_row_in_its_batch"),
    ClassMutant(ZeroesPadding, Role.ENCODER, "more_padding_changes_nothing"),
    ClassMutant(SeesTheFuture, Role.CAUSAL, "future_is_invisible"),
    ClassMutant(DividesByLength, Role.CAUSAL, "future_is_invisible"),
    ClassMutant(DividesByLength, Role.ENCODER, "more_padding_changes_nothing"),
    ClassMutant(StepsAtPositionZero, Role.CAUSAL, "stepping_equals_the_parallel_form"),
    ClassMutant(StepsInBfloat16, Role.CAUSAL, "stepping_equals_the_parallel_form"),
    ClassMutant(HidesItsState, Role.CAUSAL, "reordering_the_state_reorders_the_future"),
    ClassMutant(AppendsInPlace, Role.CAUSAL, "a_step_changes_no_state_in_place"),
    ClassMutant(ReturnsAState, Role.ENCODER, "state_follows_scope"),
    ClassMutant(PutsHeadsFirst, Role.CAUSAL, "segments_equal_the_whole"),
    ClassMutant(PutsHeadsFirst, Role.CAUSAL, "segments_equal_the_whole", "long"),
    ClassMutant(CountsPositions, Role.CAUSAL, "segments_equal_the_whole"),
    ClassMutant(MixesRows, Role.ENCODER, "a_row_alone_equals_the_row_in_its_batch"),
    ClassMutant(NanForPadding, Role.ENCODER, "padding_only_gives_zero"),
    ClassMutant(LosesBits, Role.ENCODER, "bfloat16_stays_near_float32"),
    ClassMutant(LosesBits, Role.ENCODER, "sums_stay_in_float32", "long"),
    ClassMutant(HidesAWeight, Role.ENCODER, "weights_survive_a_round_trip"),
    ClassMutant(AveragesItsInputs, Role.ENCODER, "forward_changes_no_weights"),
    ClassMutant(HasAnIdleWeight, Role.ENCODER, "every_parameter_is_used"),
    ClassMutant(ClaimsLinearMemory, Role.CAUSAL, "subquadratic_memory_is_linear"),
    ClassMutant(KeepsAllWeights, Role.ENCODER, "subquadratic_memory_is_linear"),
    ClassMutant(TruncatesLongInputs, Role.ENCODER, "too_long_inputs_are_refused"),
    ClassMutant(ReadsAWeightSilently, Role.ENCODER, "heads_in_groups_give_the_same"),
    ClassMutant(ReadsAWeightSilentlyIfLong, Role.ENCODER, "very_long_inputs_equal_shorter_ones", "long"),
    ClassMutant(ReportsATensor, Role.ENCODER, "reports_are_plain_numbers"),
    ClassMutant(PenalizesEachPosition, Role.ENCODER, "reports_are_plain_numbers"),
    ClassMutant(DropsInEvaluation, Role.ENCODER, "evaluation_is_deterministic"),
    ClassMutant(RandomInEvaluation, Role.ENCODER, "evaluation_is_deterministic"),
    ClassMutant(IgnoresDropout, Role.ENCODER, "dropout_is_unbiased_and_seeded"),
    ClassMutant(DropsWithoutScaling, Role.ENCODER, "dropout_is_unbiased_and_seeded", "long"),
    ClassMutant(DoesNotScale, Role.ENCODER, "equals_the_reference"),
    ClassMutant(DetachesValues, Role.ENCODER, "gradients_equal_finite_differences"),
    ClassMutant(DiffersInNaiveMode, Role.ENCODER, "naive_operations_give_the_same"),
]
SLOW_MUTANTS = [
    ClassMutant(BranchesOnData, Role.ENCODER, "compiles_to_one_graph"),
    ClassMutant(DrawsNothingInGraphs, Role.ENCODER, "graphs_draw_new_random_numbers"),
]
