"""Measures the time and memory of every attention layer, relative to dot-product attention (`softmax`).

    python tools/bench_attention.py [--roles …] [--lengths …] [--kinds …] [--device cuda] [--output DIR]

Training: a forward and a backward pass of one layer, for every registered kind at each length (default: width 512, 8
heads, dropout 0, no padding). A batch has 2,048 positions in all, and at least one row. `bare` is torch's
scaled_dot_product_attention between four linear maps.

Decoding: one `step` of four rows, at several positions.

A layer and `softmax` are timed alternately, so that other load on the machine affects both. If `softmax` takes longer
than --seconds, it is timed only once. Each layer runs in a separate process. Its memory is the increase of the peak
resident memory (on a GPU: of allocated memory). Measurements that would take longer than --seconds, or more memory than
--gib, are skipped, and their cells in the table stay empty.

The results are written to DIR/attention.csv and printed as tables. The columns are role, kind, family, length, seconds,
speed (the time of softmax / the time of the layer), gib, and memory (the memory of the layer / the memory of softmax).
tools/plot_attention.py plots them.
"""

import argparse
import csv
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import (
    MIXTURES,
    in_a_process,
    keep_freed_memory,
    kind_of,
    memory,
    return_freed_memory,
    seconds,
    settings_of,
)
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention import Role, attentions
from seqtk.config.schema import from_dict
from seqtk.utils.errors import UserError

DECODING = "decoding"
ROLES = ("encoder", "causal", "cross", DECODING)
POSITIONS = (16, 64, 256, 1024)
DECODED_ROWS, TIMED_STEPS = 4, 32
POSITIONS_IN_A_BATCH = 2048


@dataclasses.dataclass(frozen=True)
class Cell:
    """The measurement of one layer at one length. For decoding, `length` is the position."""

    role: str
    kind: str
    family: str
    length: int
    seconds: float
    speed: float | None = None
    gib: float | None = None
    memory: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=ROLES)
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument(
        "--kinds", nargs="+", choices=layer_names(), metavar="KIND", help="measure only these kinds and softmax"
    )
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="timings of each cell; the result is their median")
    parser.add_argument("--seconds", type=float, default=8.0, help="maximum seconds of one measurement of a cell")
    parser.add_argument("--gib", type=float, default=8.0, help="maximum memory of a cell in GiB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("bench-attention"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    cells: list[Cell] = []
    for role in arguments.roles:
        reference: dict[int, Cell] = {}
        for name in ["softmax", *(name for name in layer_names() if name != "softmax" and _wanted(name, arguments))]:
            if name == "bare" and role == DECODING:
                continue
            if name != "bare" and _role(role) not in attentions.class_of(attentions.config_type(kind_of(name))).roles:
                continue
            measured = _in_a_process(name, role, reference, arguments)
            if name == "softmax":
                reference = {cell.length: cell for cell in measured}
            cells += measured
            print(f"{role:9} {name:34} " + " ".join(_shown(cell) for cell in measured), flush=True)
            _write(arguments.output / "attention.csv", cells)
    for role in arguments.roles:
        print(f"\n{_title(role)}\n" + table([cell for cell in cells if cell.role == role]))


def layer_names() -> list[str]:
    """Returns the names of the layers to measure: every registered kind, the MIXTURES, and `bare`."""
    kinds = [kind for kind in attentions if kind != "synthesizer_mixture"]
    return ["softmax", "bare", *kinds[kinds.index("softmax") + 1 :], *kinds[: kinds.index("softmax")], *MIXTURES]


def _wanted(name: str, arguments: argparse.Namespace) -> bool:
    return arguments.kinds is None or name in arguments.kinds


def _role(role: str) -> Role:
    return Role.CAUSAL if role == DECODING else Role[role.upper()]


def build(name: str, role: str, *, length: int, arguments: argparse.Namespace) -> nn.Module:
    """Returns the layer called `name` in training mode, for inputs of `length`."""
    if name == "bare":
        return Bare(arguments.dim, heads=arguments.heads, causal=role == "causal").to(arguments.device)
    settings = settings_of(name, heads=arguments.heads, max_length=length, dropout=0.0)
    config = from_dict(attentions.config_type(kind_of(name)), settings)
    with torch.device(arguments.device):
        return attentions.build(config, dim=arguments.dim, role=_role(role))


class Bare(nn.Module):
    """The baseline `bare`: torch's scaled_dot_product_attention between four linear maps."""

    def __init__(self, dim: int, *, heads: int, causal: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.heads, self.causal = heads, causal

    def forward(self, x_BTD: Tensor, memory_BSD: Tensor | None = None) -> Tensor:
        memory_BSD = x_BTD if memory_BSD is None else memory_BSD
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(x_BTD), self.key(memory_BSD), self.value(memory_BSD))
        )
        y_BHTE = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(y_BHTE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


# --- measuring, in a separate process ---


def _in_a_process(name: str, role: str, reference: dict[int, Cell], arguments: argparse.Namespace) -> list[Cell]:
    """Measures the cells of one layer, in a separate process."""

    def run() -> Iterator[Cell]:
        torch.set_num_threads(arguments.threads)
        torch.manual_seed(0)
        measure = decoding_cells if role == DECODING else training_cells
        return measure(name, role, reference, arguments)

    cells, exit_code = in_a_process(run)
    if exit_code:
        print(f"{role:9} {name}: the process failed with exit code {exit_code}", file=sys.stderr)
    return cells


def training_cells(name: str, role: str, reference: dict[int, Cell], arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yields forward and backward measurements at each length that fits the time and memory limits."""
    family = "softmax" if name == "bare" else attentions.class_of(attentions.config_type(kind_of(name))).__module__
    peaks = dict(_peaks(name, role, arguments))
    keep_freed_memory()
    for length, gib in peaks.items():
        layer = build(name, role, length=length, arguments=arguments)
        own, softmax = _timings(layer, *_inputs(role, length, arguments), reference.get(length), role, arguments)
        speed = relative = None
        if name == "softmax":
            speed = relative = 1.0
        elif length in reference:
            speed = statistics.median(s / o for o, s in zip(own, softmax, strict=True))
            relative = gib / reference[length].gib if reference[length].gib else None
        yield Cell(role, name, family.rpartition(".")[2], length, statistics.median(own), speed, gib, relative)


def _peaks(name: str, role: str, arguments: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Yields (length, increase of memory in GiB). Stops after a length that exceeds the limit of time or memory.

    Must run before `keep_freed_memory`: after this call malloc reuses freed memory, which the increase would not
    include.
    """
    return_freed_memory()
    for length, longer in itertools.zip_longest(arguments.lengths, arguments.lengths[1:]):
        try:
            layer = build(name, role, length=length, arguments=arguments)
        except UserError as error:
            print(error, file=sys.stderr)
            return
        x_BTD, memory_BSD = _inputs(role, length, arguments)
        started = time.perf_counter()
        gib = memory(lambda layer=layer, x=x_BTD, m=memory_BSD: _train(layer, x, m), arguments.device)  # type: ignore[misc]
        taken = (time.perf_counter() - started) / 2  # the layer runs twice
        yield length, gib
        growth = (longer / length) ** 2 if longer else 1.0  # even a layer of linear cost may not fit
        too_slow = taken > arguments.seconds or taken * growth > 4 * arguments.seconds
        if name != "softmax" and (too_slow or gib > arguments.gib or gib * growth > 2 * arguments.gib):
            return


def _inputs(role: str, length: int, arguments: argparse.Namespace) -> tuple[Tensor, Tensor | None]:
    shape = (max(1, POSITIONS_IN_A_BATCH // length), length, arguments.dim)
    x_BTD = torch.randn(shape, device=arguments.device, requires_grad=True)
    return x_BTD, torch.randn(shape, device=arguments.device, requires_grad=True) if role == "cross" else None


def _train(layer: nn.Module, x_BTD: Tensor, memory_BSD: Tensor | None) -> None:
    layer.train()
    layer(x_BTD, memory_BSD)[0].sum().backward()
    layer.zero_grad()


def _timings(
    layer: nn.Module,
    x_BTD: Tensor,
    memory_BSD: Tensor | None,
    softmax: Cell | None,
    role: str,
    arguments: argparse.Namespace,
) -> tuple[list[float], list[float]]:
    """Returns (seconds of the layer, seconds of softmax) in each round, measured alternately."""
    _train(layer, x_BTD, memory_BSD)
    baseline = None
    if softmax is not None and softmax.seconds < arguments.seconds:
        baseline = build("softmax", role, length=x_BTD.shape[1], arguments=arguments)
        _train(baseline, x_BTD, memory_BSD)
    own: list[float] = []
    other: list[float] = []
    while len(own) < arguments.rounds and sum(own) < arguments.seconds:
        own.append(seconds(lambda: _train(layer, x_BTD, memory_BSD), arguments.device))
        if baseline is not None:
            other.append(seconds(lambda: _train(baseline, x_BTD, memory_BSD), arguments.device))
        elif softmax is not None:
            other.append(softmax.seconds)
    return own, other


@torch.no_grad()
def decoding_cells(name: str, role: str, reference: dict[int, Cell], arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yields the measurements of a decoding step at each of POSITIONS."""
    layers = [
        build(kind, role, length=POSITIONS[-1] + TIMED_STEPS, arguments=arguments).eval() for kind in (name, "softmax")
    ]
    family = type(layers[0]).__module__.rpartition(".")[2]
    states = [layer.start(DECODED_ROWS) for layer in layers]  # type: ignore[operator]
    x_B1D = torch.randn(DECODED_ROWS, 1, arguments.dim, device=arguments.device)

    def step(which: int) -> None:
        _, states[which] = layers[which].step(x_B1D, states[which])  # type: ignore[operator]

    position, started = 0, time.perf_counter()
    for target in POSITIONS:
        while position < target:
            step(0)
            step(1)
            position += 1
            if time.perf_counter() - started > 2 * arguments.seconds:
                return
        timings = [[seconds(lambda i=which: step(i), arguments.device) for which in (0, 1)] for _ in range(TIMED_STEPS)]  # type: ignore[misc]
        position += TIMED_STEPS
        own, softmax = (statistics.median(column) for column in zip(*timings, strict=True))
        yield Cell(role, name, family, target, own, 1.0 if name == "softmax" else softmax / own)


# --- output ---


def _shown(cell: Cell) -> str:
    return f"{cell.length}:{cell.seconds * 1000:.4g}ms" + (f"/{cell.speed:.2f}×" if cell.speed else "")


def _title(role: str) -> str:
    if role == DECODING:
        return "One decoding step, by position: milliseconds (speed relative to softmax)"
    return f"{role}, by length: milliseconds forward + backward (speed; memory, both relative to softmax)"


def table(cells: list[Cell]) -> str:
    """Returns a Markdown table with a row per layer and a column per length."""
    lengths = sorted({cell.length for cell in cells})
    found = {(cell.kind, cell.length): cell for cell in cells}
    lines = [f"| kind | {' | '.join(f'{length:,}' for length in lengths)} |", "|---" * (len(lengths) + 1) + "|"]
    for kind in dict.fromkeys(cell.kind for cell in cells):
        shown = []
        for length in lengths:
            cell = found.get((kind, length))
            relative = (
                [] if cell is None else [f"{value:.2f}" for value in (cell.speed, cell.memory) if value is not None]
            )
            shown.append("" if cell is None else f"{cell.seconds * 1000:,.4g} ({'; '.join(relative)})")
        lines.append(f"| `{kind}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def _write(path: Path, cells: list[Cell]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Cell)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(cell) for cell in cells)


if __name__ == "__main__":
    main()
