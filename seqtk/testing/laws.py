"""The laws: properties that every attention layer must have, in every role, at two sizes.

To check the registered layer `retention`:

    from seqtk.testing.laws import run_laws

    run_laws("retention", oracle=retention)

If the layer breaks laws, this raises AssertionError with one line for each failed case. A case is a law in one role and
size, with one variant of the settings. To get one pytest test for each case:

    @pytest.mark.parametrize("case", law_cases("retention", oracle=retention), ids=str)
    def test_law(case):
        case.check()

`oracle` is a reference implementation: it computes the layer's output with plain loops (see
`seqtk/testing/reference.py`). At the short size, a batch has rows of 6, 4 and 1 positions. At the long size, it has
rows of 293 and 131 positions, enough for several blocks, chunks and windows. `LAWS` maps names to laws.

B batch, T query length, S key length, D width of the layer, N draws.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from seqtk.attention import Attention, Role, Scope, StepState
from seqtk.ops import head_checkpoint
from seqtk.ops.dispatch import naive_mode, naive_ops
from seqtk.testing.memory import measured
from seqtk.testing.reference import Reference
from seqtk.testing.subject import (
    LONG,
    SHORT,
    SIZES,
    VERY_LONG,
    Inputs,
    Subject,
    Variant,
    assert_close,
    random_seed,
    run,
    steps,
    subjects,
)
from seqtk.utils.errors import UserError

SELF = Role.ENCODER | Role.CAUSAL
ANY = SELF | Role.CROSS


@dataclass(frozen=True)
class Law:
    """A property that layers must have. `check` raises AssertionError if the subject's layer does not have it."""

    check: Callable[[Subject], None]
    roles: Role = ANY
    sizes: tuple[str, ...] = ("short", "long")
    slow: bool = False
    """True if the check takes seconds. `law_cases` and `run_laws` skip the law unless `slow=True`."""
    only_if: Callable[[Subject], bool] = lambda subject: True
    """An additional condition: the law applies only to subjects for which this function returns True."""

    def applies(self, subject: Subject) -> bool:
        """Returns True if the law applies to this subject."""
        return subject.role in self.roles and subject.size.name in self.sizes and self.only_if(subject)

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def statement(self) -> str:
        """The property in one sentence."""
        return (self.check.__doc__ or "").strip().splitlines()[0]


LAWS: dict[str, Law] = {}


def law(roles: Role = ANY, **conditions: Any) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Decorator: adds a function to `LAWS`. The first line of its docstring states the property.

    `conditions` are fields of `Law`.
    """

    def add(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
        LAWS[check.__name__] = Law(check, roles, **conditions)
        return check

    return add


@dataclass(frozen=True)
class LawCase:
    """A law and the subject on which to check it: a layer in one role, at one size."""

    law: Law
    kind: str
    variant: str
    subject: Subject

    def __str__(self) -> str:
        return "-".join([self.kind, *self._details(), self.law.name])

    def _details(self) -> list[str]:
        details = [self.variant, str(self.subject.role.name).lower(), self.subject.size.name]
        return [detail for detail in details if detail]

    @property
    def where(self) -> str:
        """The layer and the law, for errors."""
        return f"{self.kind} ({', '.join(self._details())}), law {self.law.name}"

    def check(self, device: str | torch.device | None = None) -> None:
        """Raises AssertionError, with the kind and the law in its message, if the layer breaks the law.

        `device` replaces the subject's device.
        """
        subject = self.subject if device is None else replace(self.subject, device=torch.device(device))
        try:
            self.law.check(subject)
        except AssertionError as error:
            raise AssertionError(f"{self.where}: {error}") from error
        except Exception as error:
            error.add_note(self.where)
            raise


def law_cases(
    kind: str,
    *,
    oracle: Reference | None = None,
    variants: Mapping[str, Variant | Mapping[str, Any]] | None = None,
    device: str | torch.device = "cpu",
    sizes: Sequence[str] = ("short", "long"),
    slow: bool = False,
) -> list[LawCase]:
    """Returns a case for every law that applies to a registered layer, in every role, variant and size.

    Args:
        kind: The name under which the layer is registered.
        oracle: A function that computes the layer's output from its equations. If it is None, the law
            `equals_the_reference` is skipped.
        variants: Name → settings to check, as a mapping or a `Variant`, which can also restrict roles and sizes. If it
            is None, only the default settings are checked. Every variant also gets `heads=2` and a small `max_length`,
            if the layer has these settings and the variant does not set them.
        device: The device of the layer. On an accelerator, one more law applies: the outputs equal those on the CPU.
        sizes: The sizes to check: "short", "long" or both.
        slow: True to include the laws that take seconds (compilation).

    Raises:
        UserError: If no layer or size has this name, or a variant sets a key that does not exist.
    """
    for size in sizes:
        if size not in SIZES:
            raise UserError(f"sizes=[{', '.join(sizes)}]: must be of {', '.join(SIZES)}.")
    declared = {
        name: variant if isinstance(variant, Variant) else Variant(variant)
        for name, variant in (variants or {"": {}}).items()
    }
    cases = []
    for variant, subject in subjects(kind, reference=oracle, variants=declared):
        subject = replace(subject, device=torch.device(device))
        for law in LAWS.values():
            skipped = law.slow and (not slow or variant != next(iter(declared)))
            if law.applies(subject) and subject.size.name in sizes and not skipped:
                cases.append(LawCase(law, kind, variant, subject))
    return cases


def run_laws(kind: str, **arguments: Any) -> int:
    """Checks all laws of a registered layer, and returns the number of cases. For the arguments, see `law_cases`.

    Raises:
        AssertionError: If the layer breaks a law or raises an exception. The message has one line for each case that
            fails. The first exception that the layer raises is the cause.
    """
    cases = law_cases(kind, **arguments)
    broken, raised = [], []
    for case in cases:
        try:
            case.check()
        except AssertionError as error:
            broken.append(str(error))
        except Exception as error:
            broken.append(f"{case.where}: {type(error).__name__}: {error}")
            raised.append(error)
    if broken:
        message = f"{len(broken)} of {len(cases)} law cases fail:\n" + "\n".join(broken)
        raise AssertionError(message) from (raised[0] if raised else None)
    return len(cases)


def expect(condition: object, message: str) -> None:
    """Raises AssertionError if the condition is false. Unlike `assert`, it also works under `python -O`."""
    if not condition:
        raise AssertionError(message)


def expect_close(actual: Tensor, expected: Tensor, message: str, tolerance: float = SHORT.tolerance) -> None:
    """Raises AssertionError unless the absolute or the relative difference of the tensors is within the tolerance."""
    try:
        assert_close(actual, expected, tolerance)
    except AssertionError as error:
        details = " ".join(line for line in str(error).splitlines()[2:] if line)
        raise AssertionError(f"{message}. {details}") from error


def expect_close_all(
    actual: Sequence[Tensor | None], expected: Sequence[Tensor | None], message: str, tolerance: float
) -> None:
    """Calls `expect_close` for each pair of gradients from two lists. A gradient that is None counts as zero."""
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        if one is None or other is None:
            zero = not any(tensor is not None and tensor.any() for tensor in (one, other))
            expect(zero, f"{message}: tensor {number} has a gradient in only one of the two runs")
        else:
            expect_close(one, other, f"{message} (tensor {number})", tolerance)


@contextmanager
def refusal(message: str) -> Iterator[None]:
    """Context manager that raises AssertionError unless its block raises a UserError that names `max_length`."""
    try:
        yield
    except UserError as error:
        expect("max_length" in str(error), f"{message}; its message does not contain max_length: {error}")
    else:
        raise AssertionError(message)


def output_and_gradients(layer: Attention, inputs: Inputs) -> list[Tensor | None]:
    """Returns the outputs at positions that are not padding, then the gradients of all inputs and parameters.

    They are the gradients of a weighted sum of these outputs.
    """
    leaves = [*inputs.leaves(), *layer.parameters()]
    y_BTD = inputs.run(layer)
    weights_BTD = torch.linspace(-1, 1, y_BTD[inputs.real].numel(), dtype=y_BTD.dtype, device=y_BTD.device)
    total = (y_BTD[inputs.real] * weights_BTD.view_as(y_BTD[inputs.real])).sum()
    return [y_BTD[inputs.real].detach(), *torch.autograd.grad(total, leaves, allow_unused=True)]


@law(sizes=("short",))
def outputs_have_the_shape_of_inputs(subject: Subject) -> None:
    """`forward` returns (y_BTD, state), and `step` returns (y_B1D, StepState). The shape of y is the shape of x."""
    layer = subject.make()
    inputs = subject.inputs(layer)

    def check(method: str, returned: Any, x: Tensor) -> None:
        pair = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor)
        expect(pair, f"{method} must return a tensor and a state, but returns {type(returned).__name__}")
        shapes = f"{list(returned[0].shape)}, but the shape of the input is {list(x.shape)}"
        expect(returned[0].shape == x.shape, f"the shape of the output of {method} is {shapes}")

    def check_state(method: str, state: Any) -> None:
        expect(isinstance(state, StepState), f"{method} must return a StepState, but returns {type(state).__name__}")

    with torch.no_grad():
        check("forward", layer(inputs.x_BTD, inputs.memory_BSM, pad_BS=inputs.pad_BS), inputs.x_BTD)
        if layer.role in Role.CAUSAL | Role.CROSS:
            x_B1D, state = inputs.x_BTD[:, :1], inputs.start(layer)
            check_state("start", state)
            returned = layer.step(x_B1D, state)
            check("step", returned, x_B1D)
            check_state("step", returned[1])


@law()
def padding_never_leaks(subject: Subject) -> None:
    """The contents of padding positions never change an output."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    assert inputs.pad_BS is not None
    other = inputs.with_attended(torch.where(inputs.pad_BS[..., None], 100.0, inputs.attended))
    message = "outputs change when padding contains 100 instead of random numbers"
    with torch.no_grad():
        expect_close(other.run(layer)[inputs.real], inputs.run(layer)[inputs.real], message, subject.size.tolerance)


@law()
def more_padding_changes_nothing(subject: Subject) -> None:
    """More padding on the right never changes an output."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    wider = inputs.more_padding(3 if subject.size is SHORT else 37)
    with torch.no_grad():
        expect_close(
            wider.run(layer)[wider.real],
            inputs.run(layer)[inputs.real],
            "outputs change with more padding",
            subject.size.tolerance,
        )


@law(Role.CAUSAL)
def future_is_invisible(subject: Subject) -> None:
    """Neither the content nor the number of later positions changes an earlier output."""
    layer = subject.make()
    padded = subject.inputs(layer)
    length = padded.x_BTD.shape[1]
    places = range(length) if subject.size is SHORT else (0, 63, 64, 130, 256, length - 2)
    for inputs in (padded, replace(padded, pad_BS=None)):
        x_BTD = inputs.x_BTD.clone().requires_grad_()
        y_BTD = inputs.with_attended(x_BTD).run(layer)
        for t in places:
            at_t = torch.where(inputs.real[:, t, None], y_BTD[:, t], 0)  # outputs at padding have no meaning
            (gradient,) = torch.autograd.grad(at_t.sum(), x_BTD, retain_graph=True)
            expect(not gradient[:, t + 1 :].any(), f"output {t} depends on later inputs")
    with torch.no_grad():
        whole = run(layer, padded.x_BTD)
        for t in places:
            expect_close(
                run(layer, padded.x_BTD[:, : t + 1]),
                whole[:, : t + 1],
                f"outputs 0 to {t} depend on the number of later positions",
                subject.size.tolerance,
            )


@law(Role.CAUSAL | Role.CROSS)
def stepping_equals_the_parallel_form(subject: Subject) -> None:
    """`start` and `step` give the same outputs as `forward`.

    This is checked in float64 and, at the short size, also in float32. At the long size, the rows of the state are
    reordered before the last steps.
    """
    precisions = [(torch.float64, subject.size.tolerance)] + [(torch.float32, 1e-5)] * (subject.size is SHORT)
    for dtype, tolerance in precisions:
        layer = subject.make(dtype=dtype)
        inputs = subject.inputs(layer).without_padding(layer)
        length = inputs.x_BTD.shape[1]
        split = length if subject.size is SHORT else length - 6
        with torch.no_grad():
            y_BTD, state = steps(layer, inputs.x_BTD[:, :split], inputs.start(layer))
            message = f"stepping differs from the parallel form in {dtype}".replace("torch.", "")
            expect_close(y_BTD, inputs.run(layer)[:, :split], message, tolerance)
            if split < length:
                order = torch.tensor([1, 1, 0], device=subject.device)
                after = inputs.rows(order)
                y_BTD, _ = steps(layer, after.x_BTD[:, split:], reordered(state, order))
                expect_close(y_BTD, after.run(layer)[:, split:], f"{message} after rows are reordered", tolerance)


def reordered(state: Any, order: Tensor) -> Any:
    """Returns a state with its rows in a different order, as beam search reorders them."""
    return tree_map(lambda leaf: leaf[order] if isinstance(leaf, Tensor) else leaf, state)


@law(Role.CAUSAL | Role.CROSS, sizes=("short",))
def reordering_the_state_reorders_the_future(subject: Subject) -> None:
    """Reordering the rows of the state has the same effect as reordering the inputs so far."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    order = torch.tensor([2, 0, 0, 1], device=subject.device)  # beam search also changes the number of rows
    with torch.no_grad():
        _, state = steps(layer, inputs.x_BTD[:, :3], inputs.start(layer))
        actual, _ = steps(layer, inputs.x_BTD[order, 3:], reordered(state, order))
        expected, _ = steps(layer, inputs.x_BTD[order], inputs.rows(order).start(layer))
    expect_close(
        actual, expected[:, 3:], "outputs after reordering the state differ from the outputs of the reordered rows"
    )


@law(Role.CAUSAL | Role.CROSS, sizes=("short",))
def a_step_changes_no_state_in_place(subject: Subject) -> None:
    """`step` does not modify the given state, and returns its static part unchanged.

    A search can then continue one state with several tokens.
    """
    layer = subject.make()
    inputs = subject.inputs(layer)
    with torch.no_grad():
        _, state = steps(layer, inputs.x_BTD[:, :2], inputs.start(layer))
        before = [leaf.clone() for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        first, after = layer.step(inputs.x_BTD[:, 2:3], state)
        again, _ = layer.step(inputs.x_BTD[:, 2:3], state)
    expect_close(again, first, "a second step from the same state gives a different output", 0)
    leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    unchanged = all(torch.equal(leaf, copy) for leaf, copy in zip(leaves, before, strict=True))
    expect(unchanged, "step changes a tensor of the given state")
    static = zip(tree_leaves(after.static), tree_leaves(state.static), strict=True)
    expect(all(new is old for new, old in static), "step replaces a tensor of StepState.static")


@law(sizes=("short",))
def state_follows_scope(subject: Subject) -> None:
    """`forward` returns a state if `scope` is LAYER (encoders) or SEGMENT (causal layers), and None otherwise."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    with torch.no_grad():
        _, state = layer(inputs.x_BTD, inputs.memory_BSM, pad_BS=inputs.pad_BS)
    wanted = {Scope.NONE: Role(0), Scope.LAYER: Role.ENCODER, Scope.SEGMENT: Role.CAUSAL}[layer.scope]
    expected = layer.role in wanted
    expect(
        (state is not None) == expected, f"forward {'must' if expected else 'must not'} return a state: {layer.scope}"
    )


@law(Role.CAUSAL, only_if=lambda subject: subject.layer.scope is Scope.SEGMENT)
def segments_equal_the_whole(subject: Subject) -> None:
    """A layer of scope SEGMENT gives the same outputs segment by segment as for the whole text.

    The order of the rows is reversed after each segment. Streams also split and join the rows of states.
    """
    layer = subject.make()
    x_BTD = subject.inputs(layer).x_BTD
    sizes = [2, 1, 3] if subject.size is SHORT else [70, 1, 150, 72]
    outputs, state = [], None
    with torch.no_grad():
        for number, x_BtD in enumerate(torch.split(x_BTD, sizes, dim=1)):
            reverse = number % 2 == 1
            y_BtD, state = layer(x_BtD.flip(0) if reverse else x_BtD, state=state)
            outputs.append(y_BtD.flip(0) if reverse else y_BtD)
            rows_first = all(
                leaf is None or (isinstance(leaf, Tensor) and leaf.shape[:1] == x_BTD.shape[:1])
                for leaf in tree_leaves(state)
            )
            expect(rows_first, "a state must consist of tensors whose first dimension are the rows")
            state = tree_map(lambda leaf: None if leaf is None else leaf.flip(0), state)
        whole = run(layer, x_BTD)
    expect_close(
        torch.cat(outputs, 1), whole, "outputs segment by segment differ from the whole", subject.size.tolerance
    )


@law(Role.ENCODER, only_if=lambda subject: subject.layer.scope is Scope.LAYER)
def a_chain_of_layers_keeps_rows_apart(subject: Subject) -> None:
    """A row gives equal outputs alone and in a batch, if a layer of scope LAYER passes its state to the next layer."""
    first, second = subject.make(), subject.make(seed=1)
    second.chain_after(first)
    second.to(subject.device, torch.float64)  # a chained layer may have new parameters
    inputs = subject.inputs(first)

    def run_chain(x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        y_BTD, state = first(x_BTD, pad_BS=pad_BT)
        z_BTD: Tensor
        z_BTD, _ = second(y_BTD, pad_BS=pad_BT, state=state)
        return z_BTD

    with torch.no_grad():
        together = run_chain(inputs.x_BTD, inputs.pad_BS)
        for row, length in enumerate(subject.size.lengths):
            alone = run_chain(inputs.x_BTD[row : row + 1, :length], None)[0]
            message = f"the row of {length} positions gives different outputs alone and in a batch"
            expect_close(alone, together[row, :length], message, subject.size.tolerance)


@law()
def a_row_alone_equals_the_row_in_its_batch(subject: Subject) -> None:
    """A row gives the same outputs alone, without padding, as in a padded batch."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    with torch.no_grad():
        together = inputs.run(layer)
        for row, length in enumerate(subject.size.lengths):
            alone = inputs.rows(slice(row, row + 1))
            alone = replace(alone.with_attended(alone.attended[:, :length]), pad_BS=None)
            actual = alone.run(layer)[0]
            expect_close(
                actual,
                together[row, : len(actual)],
                f"the row of {length} positions gives different outputs alone and in a batch",
                subject.size.tolerance,
            )


@law()
def padding_only_gives_zero(subject: Subject) -> None:
    """A row that is all padding gives zero before the output projection, and all gradients are finite."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    assert inputs.pad_BS is not None
    inputs = replace(inputs, pad_BS=inputs.pad_BS.index_fill(0, torch.tensor([1], device=subject.device), True))
    attended = inputs.attended.clone().requires_grad_()
    y_BTD = inputs.with_attended(attended).run(layer)
    expect(y_BTD.isfinite().all(), "an output is not finite where a row is all padding")
    out = getattr(layer, "out", nn.Identity())
    nothing = out(inputs.x_BTD.new_zeros(inputs.x_BTD.shape[1], getattr(out, "in_features", layer.dim)))
    expect_close(y_BTD[1], nothing, "a row of padding does not give the bias of the output projection")
    y_BTD.sum().backward()  # type: ignore[no-untyped-call]
    gradients = [attended.grad, *(parameter.grad for parameter in layer.parameters())]
    finite = all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
    expect(finite, "a gradient is not finite where a row is all padding")


@law(sizes=("short",))
def bfloat16_stays_near_float32(subject: Subject) -> None:
    """Under bfloat16 autocast, outputs are bfloat16 and differ from float32 by less than 5% of the largest output."""
    layer = subject.make(dtype=torch.float32)
    inputs = subject.inputs(layer)
    with torch.no_grad():
        exact = inputs.run(layer)[inputs.real]
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            rough = inputs.run(layer)[inputs.real]
    expect(rough.dtype is torch.bfloat16, f"the output under bfloat16 autocast is {rough.dtype}")
    error = float((rough - exact).abs().max() / exact.abs().max())
    expect(error < 0.05, f"bfloat16 differs from float32 by {error:.1%} of the largest output; 5% is allowed")


@law(sizes=("long",))
def sums_stay_in_float32(subject: Subject) -> None:
    """Under bfloat16 autocast, operations between the linear maps are computed in float32, in `forward` and `step`.

    The outputs are compared with a float32 run that rounds the inputs and outputs of linear maps to bfloat16. The mean
    difference may be at most `Variant.bfloat16_error` times the mean output.
    """
    layer = subject.make(dtype=torch.float32)
    inputs = subject.inputs(layer)

    def run_both_forms() -> list[Tensor]:
        outputs = [inputs.run(layer)[inputs.real]]
        if layer.role in Role.CAUSAL | Role.CROSS:
            outputs.append(steps(layer, inputs.x_BTD[:, :40], inputs.start(layer))[0])
        return [output.float() for output in outputs]

    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    rounded: set[nn.Module] = set()

    def record(linear: nn.Module, _: Any, output: Tensor) -> None:
        if output.dtype is torch.bfloat16:
            rounded.add(linear)

    with torch.no_grad():
        with hooked(linears, record), torch.autocast(subject.device.type, dtype=torch.bfloat16):
            rough = run_both_forms()
        with hooked(rounded, _in_bfloat16):
            exact = run_both_forms()
    for form, one, other in zip(("parallel", "step"), rough, exact, strict=False):
        error = float((one - other).abs().mean() / other.abs().mean())
        allowed = subject.bfloat16_error
        expect(
            error <= allowed,
            f"the {form} form rounds to bfloat16 between its linear maps: outputs change by {error:.2%}, "
            f"but at most {allowed:.2%} is allowed",
        )


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Context manager that runs the hook after each forward pass of the modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _in_bfloat16(linear: nn.Linear, arguments: tuple[Tensor, ...], _: Tensor) -> Tensor:
    """Forward hook that returns the output of a linear map under bfloat16 autocast, converted to float32."""
    bias = None if linear.bias is None else linear.bias.bfloat16()
    return nn.functional.linear(arguments[0].bfloat16(), linear.weight.bfloat16(), bias).float()


@law(sizes=("short",))
def weights_survive_a_round_trip(subject: Subject) -> None:
    """`state_dict` contains everything that outputs depend on."""
    layer, other = subject.make(), subject.make(seed=7)
    inputs = subject.inputs(layer)
    with torch.no_grad():
        before = inputs.run(layer)
        other.load_state_dict(layer.state_dict(), strict=True)
        expect_close(inputs.run(other), before, "a layer with the loaded weights gives different outputs", 0)


@law(sizes=("short",))
def forward_changes_no_weights(subject: Subject) -> None:
    """In training, `forward` changes no parameter and no buffer that a checkpoint contains. `redraw` may change them.

    Activation checkpointing runs `forward` twice, and each process runs it on different rows.
    """
    layer = subject.make().train()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    subject.inputs(layer).run(layer)
    changed = [name for name, tensor in layer.state_dict().items() if not torch.equal(tensor, before[name])]
    expect(not changed, f"forward changes {', '.join(changed)}")


@law(sizes=("short",))
def every_parameter_is_used(subject: Subject) -> None:
    """Every parameter has a gradient, except the bias of keys, which softmax cancels."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    x_BTD = inputs.x_BTD.clone().requires_grad_()  # for a layer without parameters
    replace(inputs, x_BTD=x_BTD).run(layer)[inputs.real].square().sum().backward()  # type: ignore[no-untyped-call]
    unused = [name for name, p in layer.named_parameters() if p.grad is None or (p.numel() and not p.grad.any())]
    unused = [name for name in unused if not name.endswith("key.bias")]
    expect(not unused, f"these parameters have no gradient: {', '.join(unused)}")


@law(sizes=("short",))
def too_long_inputs_are_refused(subject: Subject) -> None:
    """Inputs longer than `max_length` raise a UserError that names this setting. Inputs of `max_length` do not."""
    layer = subject.make()
    limit = layer.max_length
    if limit is None:
        expect(not subject.has("max_length"), "the setting max_length has no effect: the property max_length is None")
        return
    whole = subject.inputs(layer, lengths=(limit,))
    with torch.no_grad():
        if layer.role is Role.CAUSAL:
            _, state = steps(layer, whole.x_BTD, whole.start(layer))
            with refusal(f"step {limit} does not raise a UserError: max_length={limit}"):
                layer.step(whole.x_BTD[:, :1], state)
        expect(whole.run(layer).isfinite().all(), f"an input of max_length={limit} gives an output that is not finite")
        for lengths in ((limit + 1,), (3, limit + 1)):
            with refusal(f"an input of {limit + 1} positions does not raise a UserError: max_length={limit}"):
                subject.inputs(layer, lengths=lengths).run(layer)


def subquadratic(subject: Subject) -> bool:
    """Returns True if the layer declares `subquadratic`. In naive mode, returns False, as memory may be quadratic."""
    return subject.make().subquadratic and not naive_mode()


@law(sizes=("short",), only_if=subquadratic)
def subquadratic_memory_is_linear(subject: Subject) -> None:
    """The memory of a layer that declares `subquadratic` grows no faster than its input, forward and backward."""
    long, longer = 256, 1024
    room: dict[str, Any] = {"max_length": longer} if subject.has("max_length") else {}
    layer = subject.make(dtype=torch.float32, **room)
    growth = measured(layer, longer).peak / measured(layer, long).peak
    allowed = 1.05 * longer / long
    expect(growth <= allowed, f"4 times the length takes {growth:.1f} times the memory; {allowed:.1f} is allowed")


@law(sizes=("short",))
def reports_are_plain_numbers(subject: Subject) -> None:
    """`aux_loss` is None or a finite scalar; `monitored` maps names to floats."""
    layer = subject.make().train()
    subject.inputs(layer).run(layer)
    penalty = layer.aux_loss()
    expect(penalty is None or (penalty.shape == () and penalty.isfinite()), "aux_loss is not a finite scalar")
    for name, value in layer.monitored().items():
        expect(type(name) is str and type(value) is float, f"monitored has {name!r}: {value!r}, which is not a float")


@law()
def evaluation_is_deterministic(subject: Subject) -> None:
    """In evaluation mode the same input gives the same output, and dropout is inactive."""
    layer = subject.make()
    inputs = subject.inputs(layer)
    with torch.no_grad():
        expected = inputs.run(layer)
        expect_close(inputs.run(layer), expected, "two runs in eval mode differ", 0)
        if subject.has("dropout"):
            actual = inputs.run(subject.make(dropout=0.5))
            expect_close(actual, expected, "dropout changes outputs in eval mode", subject.size.tolerance)


@law(only_if=lambda subject: subject.has("dropout"))
def dropout_is_unbiased_and_seeded(subject: Subject) -> None:
    """In training, dropout changes outputs, keeps their mean, depends on the seed, and is independent at each position.

    A layer may drop a key for all queries at once, but no block of positions may reuse the mask of another block.
    """
    layer = subject.make()
    inputs = subject.inputs(layer, lengths=None if subject.size is SHORT else (max(subject.size.lengths),))
    draws = 60 if subject.size is LONG else 20
    with torch.no_grad(), random_seed(0):
        expected = inputs.run(layer)
        expect_close(inputs.run(layer.train()), expected, "training with dropout=0 differs from evaluation", 1e-9)
        layer = subject.make(dropout=0.5).train()
        torch.manual_seed(0)
        noise_NRD = torch.stack([(inputs.run(layer) - expected)[inputs.real] for _ in range(draws)])
        torch.manual_seed(0)
        again_RD = (inputs.run(layer) - expected)[inputs.real]
    ignored = torch.equal(noise_NRD[0], noise_NRD[1])
    expect(not ignored, "dropout must change outputs in training: the layer has a 'dropout' setting but ignores it")
    expect(
        torch.equal(noise_NRD[0], again_RD),
        "dropout must draw from torch's generator: the same seed gives a different mask",
    )
    bias = float(noise_NRD.mean(0).norm() / noise_NRD.flatten(1).norm(dim=1).mean())
    expect(
        bias < 0.6, f"dropout must keep the mean of outputs: over {draws} draws it differs by {bias:.0%} of the noise"
    )
    if subject.size is LONG:
        noise_NR = noise_NRD @ torch.linspace(-1, 1, noise_NRD.shape[2], dtype=torch.float64, device=subject.device)
        correlation_RR = torch.corrcoef(noise_NR.T).abs().nan_to_num(0).fill_diagonal_(0)
        far = correlation_RR.triu(16)
        mean = float(far.sum() / far.count_nonzero().clamp(min=1))
        if mean < 0.12:  # otherwise all queries share the dropped keys; independent noise has a mean of 0.1
            expect(
                far.max() < 0.75, "dropout must be independent at every position: two blocks of positions share a mask"
            )


@law(only_if=lambda subject: subject.reference is not None)
def equals_the_reference(subject: Subject) -> None:
    """Outputs in float64 equal the reference implementation, which restates the equations as loops."""
    layer = subject.make()
    padded = subject.inputs(layer, lengths=subject.size.reference_lengths)
    for inputs in (padded, replace(padded, pad_BS=None))[: len(subject.size.reference_lengths)]:
        with torch.no_grad():
            actual, expected = inputs.run(layer)[inputs.real], subject.expected(layer, inputs)[inputs.real]
        expect_close(actual, expected, "outputs differ from the reference", subject.size.tolerance)


@law()
def gradients_equal_finite_differences(subject: Subject) -> None:
    """The gradients of inputs and parameters equal finite differences, with and without dropout.

    They are compared along one random direction d, in float64: (f(x + ε d) - f(x - ε d)) / 2ε = ∇f · d.
    """
    step = 1e-6
    for dropout in (0.0, 0.3) if subject.has("dropout") else (None,):
        settings: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
        layer = subject.make(**settings).train()
        inputs = subject.inputs(layer)
        leaves = [*inputs.leaves(), *layer.parameters()]
        generator = torch.Generator().manual_seed(2)
        directions = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf) for leaf in leaves]
        weights_BTD = torch.randn(inputs.x_BTD.shape, generator=generator, dtype=leaves[0].dtype).to(leaves[0])

        def value(shift: float) -> Tensor:
            with torch.no_grad():
                for leaf, direction in zip(leaves, directions, strict=True):  # noqa: B023
                    leaf.add_(direction, alpha=shift)
            with random_seed(0):
                return (inputs.run(layer) * weights_BTD)[inputs.real].sum()  # noqa: B023

        gradients = torch.autograd.grad(value(0.0), leaves, allow_unused=True)
        with torch.no_grad():
            after, before = value(step), value(-2 * step)
        slopes = [0.0 if g is None else float((g * d).sum()) for g, d in zip(gradients, directions, strict=True)]
        difference = float(after - before) / (2 * step)
        error = abs(difference - sum(slopes)) / max(math.hypot(*slopes), 1e-3)
        with_dropout = f" with dropout={dropout}" if dropout else ""
        expect(
            error < 1e-5,
            f"the slope along a direction{with_dropout} is {difference:.6g}, but the gradient gives {sum(slopes):.6g}",
        )


@law(sizes=("long",), only_if=subquadratic)
def very_long_inputs_equal_shorter_ones(subject: Subject) -> None:
    """A layer that declares `subquadratic` gives the same outputs and gradients when padding makes the input very long.

    The input has 2,040 positions, alone and with padding up to 2,100. From 2,048 positions on, layers may compute in
    a different order to save memory.
    """
    room: dict[str, Any] = {"max_length": VERY_LONG} if subject.has("max_length") else {}
    layer = subject.make(**room)
    found = []
    for padding in (0, 60):
        inputs = subject.inputs(layer, lengths=(VERY_LONG - 60,)).more_padding(padding)
        inputs = replace(inputs, x_BTD=inputs.x_BTD.detach())
        y, *gradients = output_and_gradients(layer, inputs)
        cut = [
            g[:, : VERY_LONG - 60] if g is not None and g.dim() == 3 and g.shape[1] >= VERY_LONG - 60 else g
            for g in gradients
        ]
        found.append([y, *cut])
    expect_close_all(found[1], found[0], "a very long input differs from a shorter one", 1e-8)


@law(sizes=("short",))
def heads_in_groups_give_the_same(subject: Subject) -> None:
    """Outputs and gradients are the same when `checkpoint_over_heads` processes one head at a time, at any length."""
    for dropout in (0.0, 0.3) if subject.has("dropout") else (None,):
        settings: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
        found = []
        for one_at_a_time in (False, True):
            layer = subject.make(**settings).train()
            context = heads_one_at_a_time(subject.device.type) if one_at_a_time else nullcontext()
            with context, random_seed(0):
                found.append(output_and_gradients(layer, subject.inputs(layer)))
        message = f"one head at a time differs from all heads at once, with dropout={dropout}"
        expect_close_all(found[1], found[0], message, subject.size.tolerance)


@contextmanager
def heads_one_at_a_time(device: str) -> Iterator[None]:
    """Context manager in which `checkpoint_over_heads` processes inputs of any length one head at a time."""
    before = head_checkpoint.MIN_LENGTH, head_checkpoint.CHUNK_ELEMENTS
    head_checkpoint.MIN_LENGTH, head_checkpoint.CHUNK_ELEMENTS = 0, {device: 1}
    try:
        yield
    finally:
        head_checkpoint.MIN_LENGTH, head_checkpoint.CHUNK_ELEMENTS = before


@law()
def naive_operations_give_the_same(subject: Subject) -> None:
    """Outputs and gradients are the same if every operation runs its naive form (`SEQTK_NAIVE=1`)."""
    layer = subject.make()
    fast = output_and_gradients(layer, subject.inputs(layer))
    with naive_ops():
        naive = output_and_gradients(layer, subject.inputs(layer))
    expect_close_all(fast, naive, "the fast and the naive form of an operation differ", 10 * subject.size.tolerance)


@law(sizes=("short",), slow=True)
def compiles_to_one_graph(subject: Subject) -> None:
    """`torch.compile(fullgraph=True)` compiles forward and backward, and both give the same results.

    The backend traces and differentiates the graph, but generates no code.
    """
    torch.compiler.reset()
    layer = subject.make(dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    padded = subject.inputs(layer)
    for pad_BS in (None, padded.pad_BS):
        inputs = replace(padded, pad_BS=pad_BS)
        expected = output_and_gradients(layer, inputs)
        actual = output_and_gradients(compiled, inputs)  # type: ignore[arg-type]
        expect_close_all(actual, expected, "the compiled layer differs", 1e-5)


@law(sizes=("short",), slow=True)
def graphs_draw_new_random_numbers(subject: Subject) -> None:
    """In training, each call in a compiled graph draws new random numbers, the same as in eager mode."""
    torch.compiler.reset()
    dropout: dict[str, Any] = {"dropout": 0.3} if subject.has("dropout") else {}
    layer = subject.make(dtype=torch.float32, **dropout).train()
    inputs = subject.inputs(layer)

    def two_calls() -> list[Tensor]:
        return [inputs.run(layer) for _ in range(2)]

    def seeded(form: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Returns the outputs at positions that are not padding, and the next random numbers."""
        with random_seed(1):
            return [*(y_BTD[inputs.real] for y_BTD in form()), torch.rand(3, device=subject.device)]

    expected = seeded(two_calls)
    if torch.equal(expected[-1], seeded(list)[-1]):
        return  # the layer draws no random numbers
    actual = seeded(torch.compile(two_calls, fullgraph=True, backend="aot_eager"))
    expect_close_all(actual, expected, "a compiled graph draws different random numbers than eager mode", 1e-4)


@law(only_if=lambda subject: subject.device.type != "cpu")
def devices_give_the_same(subject: Subject) -> None:
    """Outputs and gradients on an accelerator equal the CPU's, in float64."""
    found = []
    for device in (torch.device("cpu"), subject.device):
        there = replace(subject, device=device)
        layer = there.make()
        found.append([t if t is None else t.cpu() for t in output_and_gradients(layer, there.inputs(layer))])
    expect_close_all(found[1], found[0], f"{subject.device.type} differs from the CPU", 100 * subject.size.tolerance)
