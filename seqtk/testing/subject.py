"""The subject of a law: one layer, in one role, at one size.

B batch, T query length, S key length, D width of the layer, M width of the memory.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from seqtk.attention import Attention, AttentionConfig, Role, StepState, attentions
from seqtk.config.schema import from_dict
from seqtk.testing.reference import Reference, reference_output


@dataclass(frozen=True)
class Size:
    """The widths and lengths at which a law is checked."""

    name: str
    dim: int
    memory_dim: int
    lengths: tuple[int, ...]
    """The real length of each row (for a CROSS layer: of its memory). Shorter rows are padded on the right."""
    queries: int
    """The number of queries of a CROSS layer."""
    reference_lengths: tuple[int, ...]
    """Shorter `lengths` for the comparison with a reference implementation, which is slow."""
    settings: Mapping[str, Any]
    """Settings to apply if the config has these fields and the variant does not set them."""
    tolerance: float
    """The maximum difference of results in float64."""


SHORT = Size("short", 8, 6, (6, 4, 1), 5, (6, 4, 1), {"heads": 2, "max_length": 12}, 1e-10)
LONG = Size("long", 16, 12, (293, 131), 70, (139,), {"heads": 2, "max_length": 330}, 1e-9)
"""Rows are long enough for several blocks, chunks and windows, and for both tensors of `seqtk.ops.cache`."""
SIZES = {size.name: size for size in (SHORT, LONG)}

VERY_LONG = 2100
"""More than 2,048 positions, the length from which on layers with linear cost process a few heads at a time."""


@dataclass(frozen=True)
class Variant:
    """Settings of a layer, for which the laws are checked."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    roles: Role = Role.ENCODER | Role.CAUSAL | Role.CROSS
    """The roles in which the layer accepts these settings."""
    sizes: tuple[str, ...] = ("short", "long")
    bfloat16_error: float = 0.02
    """The maximum mean relative error of outputs that rounding to bfloat16 between linear maps may cause."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of a layer's `forward`."""

    x_BTD: Tensor
    memory_BSM: Tensor | None
    pad_BS: Tensor | None

    @property
    def attended(self) -> Tensor:
        """The sequence that queries attend to: the memory of a CROSS layer, otherwise x."""
        return self.x_BTD if self.memory_BSM is None else self.memory_BSM

    @property
    def real(self) -> Tensor:
        """A mask of the outputs, which is True at positions that are not padding."""
        if self.pad_BS is None or self.memory_BSM is not None:
            return torch.ones(self.x_BTD.shape[:2], dtype=torch.bool, device=self.x_BTD.device)
        return ~self.pad_BS

    def with_attended(self, new: Tensor) -> "Inputs":
        """Returns a copy of the inputs with a new memory (CROSS) or a new x."""
        return replace(self, x_BTD=new) if self.memory_BSM is None else replace(self, memory_BSM=new)

    def rows(self, index: Any) -> "Inputs":
        """Returns the inputs of the rows at `index`, which is a slice or a tensor."""
        memory_BSM = None if self.memory_BSM is None else self.memory_BSM[index]
        return Inputs(self.x_BTD[index], memory_BSM, None if self.pad_BS is None else self.pad_BS[index])

    def without_padding(self, layer: Attention) -> "Inputs":
        """Returns the inputs without the padding mask of x. The memory of a CROSS layer keeps its padding mask."""
        return self if layer.role is Role.CROSS else replace(self, pad_BS=None)

    def more_padding(self, count: int) -> "Inputs":
        """Returns the inputs with `count` more positions of padding, filled with ones."""
        assert self.pad_BS is not None
        wider = self.with_attended(nn.functional.pad(self.attended, (0, 0, 0, count), value=1.0))
        return replace(wider, pad_BS=nn.functional.pad(self.pad_BS, (0, count), value=True))

    def leaves(self) -> list[Tensor]:
        """Returns the inputs as leaf tensors that require gradients."""
        return [tensor.requires_grad_() for tensor in (self.x_BTD, self.memory_BSM) if tensor is not None]

    def run(self, layer: Attention) -> Tensor:
        """Returns the output of the layer, y_BTD."""
        return run(layer, self.x_BTD, self.memory_BSM, pad_BS=self.pad_BS)

    def start(self, layer: Attention) -> StepState:
        """Returns the state before the first step."""
        return layer.start(len(self.x_BTD), self.memory_BSM, pad_BS=None if layer.role is Role.CAUSAL else self.pad_BS)


def run(layer: Attention, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> Tensor:
    """Returns the output of the layer's `forward`, y_BTD, without the state."""
    y_BTD: Tensor
    y_BTD, _ = layer(x_BTD, memory_BSM, pad_BS=pad_BS)
    return y_BTD


def steps(layer: Attention, x_BTD: Tensor, state: StepState) -> tuple[Tensor, StepState]:
    """Runs one step per position of x. Returns (outputs y_BTD, state after the last step)."""
    outputs = []
    for t in range(x_BTD.shape[1]):
        y_B1D, state = layer.step(x_BTD[:, t : t + 1], state)
        outputs.append(y_B1D)
    return torch.cat(outputs, 1), state


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Raises AssertionError unless the absolute or the relative difference is within the tolerance."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@dataclass(frozen=True)
class Subject:
    """A layer class with a config, in one role, at one size. `make` builds the layer."""

    layer: type[Attention]
    config: AttentionConfig
    role: Role
    size: Size = SHORT
    reference: Reference | None = None
    bfloat16_error: float = 0.02
    device: torch.device = torch.device("cpu")

    def make(self, *, dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any) -> Attention:
        """Builds the layer in evaluation mode. Every call with the same `seed` gives the same weights.

        All weights are random, because weights that are 0 would hide errors.
        """
        config = dataclasses.replace(self.config, **settings)
        memory_dim = self.size.memory_dim if self.role is Role.CROSS else None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for absent devices, which takes longer
            layer = self.layer(config, dim=self.size.dim, role=self.role, memory_dim=memory_dim)
            scale = 0.6 * (SHORT.dim / self.size.dim) ** 0.5
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=scale)
        return layer.to(self.device, dtype).eval()

    def has(self, setting: str) -> bool:
        """Returns True if the config has the setting."""
        return any(field.name == setting for field in dataclasses.fields(self.config))

    def inputs(self, layer: Attention, *, lengths: Sequence[int] | None = None, seed: int = 1) -> Inputs:
        """Returns random inputs, padded on the right. `lengths` are the lengths of the rows without padding.

        For a CROSS layer, they are the lengths of the memory.
        """
        lengths = lengths or self.size.lengths
        generator = torch.Generator().manual_seed(seed)
        dtype = next((p.dtype for p in layer.parameters()), torch.float64)
        length, cross = max(lengths), layer.role is Role.CROSS

        def draw(positions: int, width: int) -> Tensor:
            shape = (len(lengths), positions, width)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device, dtype)

        x_BTD = draw(self.size.queries if cross else length, layer.dim)
        memory_BSM = draw(length, layer.memory_dim) if cross else None
        pad_BS = torch.arange(length)[None] >= torch.tensor(lengths)[:, None]
        return Inputs(x_BTD, memory_BSM, pad_BS.to(self.device))

    def expected(self, layer: Attention, inputs: Inputs) -> Tensor:
        """Returns the output of the reference implementation, y_BTD."""
        assert self.reference is not None
        pad_BS = torch.zeros(inputs.attended.shape[:2], dtype=torch.bool) if inputs.pad_BS is None else inputs.pad_BS
        y_BTD = reference_output(self.reference, layer, inputs.x_BTD, inputs.memory_BSM, pad_BS=pad_BS)
        return torch.from_numpy(y_BTD).to(self.device)


def subjects(
    kind: str, *, reference: Reference | None = None, variants: Mapping[str, Variant] | None = None
) -> Iterator[tuple[str, Subject]]:
    """Yields (name of the variant, subject) for every variant, role and size of a registered layer."""
    config_type = attentions.config_type(kind)
    layer = attentions.class_of(config_type)
    known = {field.name for field in dataclasses.fields(config_type)}
    for name, variant in (variants or {"": Variant()}).items():
        for size in map(SIZES.__getitem__, variant.sizes):
            settings = {key: value for key, value in size.settings.items() if key in known} | dict(variant.settings)
            config: AttentionConfig = from_dict(config_type, settings)
            for role in Role:
                if role in layer.roles & variant.roles:
                    yield name, Subject(layer, config, role, size, reference, variant.bfloat16_error)


@contextlib.contextmanager
def random_seed(seed: int) -> Iterator[None]:
    """Seeds torch's default generators inside the block and restores their states after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
