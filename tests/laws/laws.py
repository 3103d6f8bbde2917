"""What every attention layer promises, each promise a plain function that fails if `make`'s layer breaks it.

`LAWS` has them all, by name, with the roles they are about. B batch, T query length, S key length, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from seqtk.attention import Attention, Role, State
from seqtk.ops import head_checkpoint as by_heads
from seqtk.utils.errors import UserError
from tests.laws.cases import Make
from tests.laws.memory import peak_memory
from tests.laws.naive import naive

LENGTHS = (6, 4, 1)
SELF = Role.ENCODER | Role.CAUSAL
ANY = SELF | Role.CROSS

Law = Callable[[Make, torch.device], None]
LAWS: dict[str, tuple[Law, Role]] = {}


def law(roles: Role) -> Callable[[Law], Law]:
    def enter(function: Law) -> Law:
        LAWS[function.__name__] = function, roles
        return function

    return enter


@dataclass(frozen=True)
class Inputs:
    """What a layer is called with; `real` is True where its output means something."""

    x_BTD: Tensor
    memory_BSM: Tensor | None
    pad_BS: Tensor | None

    @property
    def keys_from(self) -> Tensor:
        return self.x_BTD if self.memory_BSM is None else self.memory_BSM

    @property
    def real(self) -> Tensor:
        if self.pad_BS is None or self.memory_BSM is not None:
            return torch.ones(self.x_BTD.shape[:2], dtype=torch.bool, device=self.x_BTD.device)
        return ~self.pad_BS

    def with_keys_from(self, new: Tensor) -> "Inputs":
        return replace(self, x_BTD=new) if self.memory_BSM is None else replace(self, memory_BSM=new)

    def run(self, layer: Attention) -> Tensor:
        y_BTD: Tensor = layer(self.x_BTD, self.memory_BSM, pad_BS=self.pad_BS)[0]
        return y_BTD

    def start(self, layer: Attention) -> State:
        return layer.start(len(self.x_BTD), self.memory_BSM, pad_BS=None if layer.role is Role.CAUSAL else self.pad_BS)


def inputs_for(layer: Attention, device: torch.device, *, lengths: Sequence[int] = LENGTHS, seed: int = 1) -> Inputs:
    """Right-padded rows of the given real lengths (of the memory, if there is one)."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next((p.dtype for p in layer.parameters()), torch.float64)
    size = max(lengths)

    def draw(length: int, width: int) -> Tensor:
        return torch.randn(len(lengths), length, width, generator=generator, dtype=torch.float64).to(device, dtype)

    cross = layer.role is Role.CROSS
    pad_BS = torch.arange(size)[None] >= torch.tensor(lengths)[:, None]
    return Inputs(draw(size, layer.dim), draw(size, layer.memory_dim) if cross else None, pad_BS.to(device))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def steps(
    layer: Attention, x_BTD: Tensor, state: State, *, kind: type[Attention] | None = None
) -> tuple[Tensor, State]:
    """The outputs of one step per position of x, and the state after them; `kind` chooses whose `step`."""
    outputs = []
    for t in range(x_BTD.shape[1]):
        y_B1D, state = (kind or type(layer)).step(layer, x_BTD[:, t : t + 1], state)
        outputs.append(y_B1D)
    return torch.cat(outputs, 1), state


@law(ANY)
def content_of_padding_never_leaks(make: Make, device: torch.device) -> None:
    layer = make(device)
    inputs = inputs_for(layer, device)
    assert inputs.pad_BS is not None
    other = inputs.with_keys_from(torch.where(inputs.pad_BS[..., None], 100.0, inputs.keys_from))
    close(other.run(layer)[inputs.real], inputs.run(layer)[inputs.real])


@law(ANY)
def more_padding_changes_nothing(make: Make, device: torch.device) -> None:
    layer = make(device)
    inputs = inputs_for(layer, device)
    assert inputs.pad_BS is not None
    wider = replace(
        inputs.with_keys_from(nn.functional.pad(inputs.keys_from, (0, 0, 0, 3), value=1.0)),
        pad_BS=nn.functional.pad(inputs.pad_BS, (0, 3), value=True),
    )
    close(wider.run(layer)[wider.real], inputs.run(layer)[inputs.real])


@law(Role.CAUSAL)
def future_is_invisible(make: Make, device: torch.device) -> None:
    layer = make(device)
    right = inputs_for(layer, device)
    for inputs in (right, replace(right, pad_BS=None)):
        x_BTD = inputs.x_BTD.clone().requires_grad_()
        y_BTD = inputs.with_keys_from(x_BTD).run(layer)
        for t in range(x_BTD.shape[1]):
            real_at_t = torch.where(inputs.real[:, t, None], y_BTD[:, t], 0)  # outputs at padding mean nothing
            (gradient,) = torch.autograd.grad(real_at_t.sum(), x_BTD, retain_graph=True)
            assert not gradient[:, t + 1 :].any(), f"output {t} depends on later inputs"
    for length in range(1, right.x_BTD.shape[1]):  # nor does it matter how much future there is
        close(layer(right.x_BTD[:, :length])[0], layer(right.x_BTD)[0][:, :length])


def _stepping_equals_parallel(make: Make, device: torch.device, dtype: torch.dtype, tolerance: float) -> None:
    layer = make(device, dtype=dtype)
    inputs = inputs_for(layer, device)
    parallel = replace(inputs, pad_BS=inputs.pad_BS if layer.role is Role.CROSS else None).run(layer)
    close(steps(layer, inputs.x_BTD, inputs.start(layer))[0], parallel, tolerance)


@law(Role.CAUSAL | Role.CROSS)
def stepping_equals_parallel_fp64(make: Make, device: torch.device) -> None:
    _stepping_equals_parallel(make, device, torch.float64, 1e-10)


@law(Role.CAUSAL | Role.CROSS)
def stepping_equals_parallel_fp32(make: Make, device: torch.device) -> None:
    _stepping_equals_parallel(make, device, torch.float32, 1e-5)


@law(Role.CAUSAL | Role.CROSS)
def stepping_equals_the_default_step(make: Make, device: torch.device) -> None:
    layer = make(device)
    inputs = inputs_for(layer, device)
    own, _ = steps(layer, inputs.x_BTD, inputs.start(layer))
    pad_BS = inputs.pad_BS if layer.role is Role.CROSS else None
    state = Attention.start(layer, len(inputs.x_BTD), inputs.memory_BSM, pad_BS=pad_BS)
    close(steps(layer, inputs.x_BTD, state, kind=Attention)[0], own)


@law(Role.CAUSAL | Role.CROSS)
def reordering_the_state_reorders_the_future(make: Make, device: torch.device) -> None:
    layer = make(device)
    inputs = inputs_for(layer, device)
    past_BTD, future_BTD = inputs.x_BTD[:, :3], inputs.x_BTD[:, 3:]
    order = torch.tensor([2, 0, 0, 1], device=device)  # a beam search also makes rows more or fewer
    _, state = steps(layer, past_BTD, inputs.start(layer))
    state = tree_map(lambda leaf: None if leaf is None else leaf[order], state)
    actual, _ = steps(layer, future_BTD[order], state)

    reordered = Inputs(
        inputs.x_BTD[order],
        None if inputs.memory_BSM is None else inputs.memory_BSM[order],
        None if inputs.pad_BS is None else inputs.pad_BS[order],
    )
    expected, _ = steps(layer, reordered.x_BTD, reordered.start(layer))
    close(actual, expected[:, 3:])


@law(ANY)
def a_row_alone_equals_its_row_in_the_batch(make: Make, device: torch.device) -> None:
    layer = make(device)
    inputs = inputs_for(layer, device)
    together = inputs.run(layer)
    for row, length in enumerate(LENGTHS):
        x_1TD = inputs.x_BTD[row : row + 1]
        if inputs.memory_BSM is None:
            close(layer(x_1TD[:, :length])[0][0], together[row, :length])
        else:
            close(layer(x_1TD, inputs.memory_BSM[row : row + 1, :length])[0][0], together[row])


@law(ANY)
def seeing_nothing_gives_zero(make: Make, device: torch.device) -> None:
    """Where all is padding the layer adds only the bias of its output projection, and no gradient is NaN."""
    layer = make(device)
    inputs = inputs_for(layer, device)
    assert inputs.pad_BS is not None
    inputs = replace(inputs, pad_BS=inputs.pad_BS.index_fill(0, torch.tensor([1], device=device), True))
    keys_from = inputs.keys_from.clone().requires_grad_()
    y_BTD = inputs.with_keys_from(keys_from).run(layer)
    assert y_BTD.isfinite().all()
    out = getattr(layer, "out", nn.Identity())
    nothing = out(inputs.x_BTD.new_zeros(inputs.x_BTD.shape[1], getattr(out, "in_features", layer.dim)))
    close(y_BTD[1], nothing)
    y_BTD.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [keys_from, *layer.parameters()])


@law(ANY)
def bfloat16_stays_near_float32(make: Make, device: torch.device) -> None:
    layer = make(device, dtype=torch.float32)
    inputs = inputs_for(layer, device)
    exact = inputs.run(layer)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        rough = inputs.run(layer)
    assert rough.dtype is torch.bfloat16
    assert (rough - exact)[inputs.real].abs().max() < 0.05 * exact.abs().max()


@law(ANY)
def weights_make_the_round_trip(make: Make, device: torch.device) -> None:
    layer, other = make(device), make(device, seed=7)
    inputs = inputs_for(layer, device)
    before = inputs.run(layer)
    weightless = not layer.state_dict()
    assert torch.allclose(inputs.run(other)[inputs.real], before[inputs.real]) == weightless
    other.load_state_dict(layer.state_dict(), strict=True)
    close(inputs.run(other), before, 0)


@law(ANY)
def every_parameter_is_used(make: Make, device: torch.device) -> None:
    layer = make(device)
    inputs = inputs_for(layer, device)
    x_BTD = inputs.x_BTD.clone().requires_grad_()  # for a layer without any
    replace(inputs, x_BTD=x_BTD).run(layer)[inputs.real].square().sum().backward()
    unused = [name for name, p in layer.named_parameters() if p.grad is None or (p.numel() and not p.grad.any())]
    assert [name for name in unused if not name.endswith("key.bias")] == []  # a softmax cannot see the keys' bias


@law(ANY)
def too_long_is_refused_by_name(make: Make, device: torch.device) -> None:
    layer = make(device)
    limit = layer.max_length
    if limit is None:
        assert not hasattr(layer.config, "max_length")
        return
    whole = inputs_for(layer, device, lengths=(limit,))
    state = whole.start(layer)
    if layer.role is Role.CAUSAL:
        _, state = steps(layer, whole.x_BTD, state)
        with pytest.raises(UserError, match=r"attention\.max_length"):
            layer.step(whole.x_BTD[:, :1], state)
    assert whole.run(layer).isfinite().all()
    for inputs in (inputs_for(layer, device, lengths=(limit + 1,)), inputs_for(layer, device, lengths=(3, limit + 1))):
        with pytest.raises(UserError, match=r"attention\.max_length"):
            inputs.run(layer)


@law(ANY)
def what_is_called_subquadratic_makes_no_square(make: Make, device: torch.device) -> None:
    """Neither as one tensor nor in pieces: at its peak, all that it holds grows no faster than its input."""
    long, longer = 256, 1024
    room = {"max_length": longer} if hasattr(make(device).config, "max_length") else {}
    layer = make(device, dtype=torch.float32, **room)
    if layer.subquadratic:
        growth = peak_memory(layer, longer) / peak_memory(layer, long)
        assert growth <= 1.05 * longer / long


@law(ANY)
def long_inputs_are_computed_as_short_ones(make: Make, device: torch.device) -> None:
    """Outputs and every gradient are the same where some heads at a time go through and are made again."""
    found = []
    for longest in (by_heads.MIN_LENGTH, 0):
        layer = make(device).train()
        inputs = inputs_for(layer, device)
        leaves = [tensor.requires_grad_() for tensor in (inputs.x_BTD, inputs.memory_BSM) if tensor is not None]
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(by_heads, "MIN_LENGTH", longest)
            patch.setattr(by_heads, "CHUNK_ELEMENTS", {device.type: 1})
            y_BTD = inputs.run(layer)
            weights_BTD = torch.linspace(-1, 1, y_BTD.numel(), dtype=y_BTD.dtype, device=device).view_as(y_BTD)
            (y_BTD * weights_BTD)[inputs.real].sum().backward()
        found.append([y_BTD[inputs.real], *(tensor.grad for tensor in (*leaves, *layer.parameters()))])
    for short, long in zip(*found, strict=True):
        assert (short is None) == (long is None)
        if short is not None:
            close(long, short)


@law(ANY)
def what_it_reports_is_plain(make: Make, device: torch.device) -> None:
    layer = make(device)
    penalty = layer.aux_loss()
    assert penalty is None or (penalty.shape == () and penalty.isfinite())
    assert all(type(name) is str and type(value) is float for name, value in layer.monitored().items())


@law(ANY)
def dropout_acts_in_training_only(make: Make, device: torch.device) -> None:
    layer = make(device)
    if not hasattr(layer.config, "dropout"):
        return
    inputs = inputs_for(layer, device)
    expected = inputs.run(layer)
    close(inputs.run(layer.train()), expected)
    layer = make(device, dropout=0.5)
    close(inputs.run(layer), expected)
    layer.train()
    torch.manual_seed(0)
    errors = torch.stack([inputs.run(layer) - expected for _ in range(100)])[:, inputs.real]
    assert not torch.equal(errors[0], errors[1])
    assert errors.mean(0).norm() < errors.flatten(1).norm(dim=1).mean() / 2  # right on average


@law(ANY)
def evaluation_is_deterministic(make: Make, device: torch.device) -> None:
    layer = make(device)
    inputs = inputs_for(layer, device)
    close(inputs.run(layer), inputs.run(layer), 0)


@law(ANY)
def it_computes_the_equations(make: Make, device: torch.device) -> None:
    layer = make(device)
    right = inputs_for(layer, device)
    assert right.pad_BS is not None
    whole = replace(right, pad_BS=None)
    for inputs in (right, whole):
        pad_BS = torch.zeros_like(right.pad_BS) if inputs.pad_BS is None else inputs.pad_BS
        expected = naive(layer, inputs.x_BTD, inputs.memory_BSM, pad_BS=pad_BS)
        real = inputs.real.cpu().numpy()
        np.testing.assert_allclose(
            inputs.run(layer).detach().cpu().numpy()[real], expected[real], rtol=1e-10, atol=1e-10
        )
