"""How fast a run is: where its time goes, its padding, and the share of the device's peak that it uses.

MFU (model FLOPs utilization; Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is the number of floating-point
operations that the model needs for the real positions of an update, divided by what the device could do in the time
that the update took. A position that passes through W weights of matrices needs 6 W operations: 2 in the forward pass
and 4 in the backward pass. A layer of width D that compares all of T queries with all of S keys needs another 12 T S D
for two products of matrices. Padding, recomputed activations, norms and elementwise operations do not count.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from seqtk.attention import Role
from seqtk.checkpoint.module_table import aligned
from seqtk.data.plan import SizeArray, Update, positions, real_batches
from seqtk.models import Model
from seqtk.modules.adaptive import AdaptiveHead
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file

if TYPE_CHECKING:
    from seqtk.training.config import TrainConfig

PHASES = ("data", "forward", "backward", "communication", "optimizer", "other")
SPEED = "speed/"
"""Begins the names of the sums of this file in the sums of a log interval."""

MAX_PROFILED = 100
"""The most updates in one trace, which has some thousands of events an update."""

CARDS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 2250, 75),
    "H200 NVL": (835, 835, 60),
    "H200": (989.4, 989.4, 66.9),
    "H100 PCIe": (756, 756, 51),
    "H100 NVL": (835, 835, 60),
    "H100": (989.4, 989.4, 66.9),
    "GH200": (989.4, 989.4, 66.9),
    "A100": (312, 312, 19.5),
    "A800": (312, 312, 19.5),
    "A40": (149.7, 149.7, 37.4),
    "A30": (165, 165, 10.3),
    "A10": (125, 125, 31.2),
    "L40S": (362.05, 362.05, 91.6),
    "L40": (181.05, 181.05, 90.5),
    "L4": (121, 121, 30.3),
    "RTX A6000": (154.8, 154.8, 38.7),
    "RTX 4090": (165.2, 165.2, 82.6),
    "RTX 3090": (71, 71, 35.6),
    "T4": (0, 65, 8.1),
    "V100": (0, 125, 15.7),
    "MI300X": (1307.4, 1307.4, 163.4),
    "MI250X": (383, 383, 95.7),
}
"""Peak TFLOP/s of dense matrix products in bf16, fp16 and fp32, from the makers' data sheets (the values without
sparsity; of NVIDIA's GeForce cards those with fp32 accumulation, from the architectures' white papers). fp32 is without
TF32, as torch's default. 0: the card has no units for it."""


def peak_tflops(card: str, precision: str) -> float | None:
    """Returns the peak of a card in `fp32`, `bf16` or `fp16`. None: it is not known."""
    for name, figures in CARDS.items():
        if re.search(rf"\b{re.escape(name)}\b", card):
            return figures[("bf16", "fp16", "fp32").index(precision)] or None
    return None


class ModelFlops:
    """Counts the floating-point operations of training from the model's weights and the lengths of examples.

    The weights are those of linear maps, convolutions and the output table. The encoder's weights and the
    cross-attention's projections of the memory apply to source positions, all others to target positions. A model with
    an encoder alone reads all sides with it. A head that pools a row is not counted, and of an adaptive softmax only
    the most frequent band. Layers that declare `subquadratic` have no products of queries and keys.
    """

    def __init__(self, model: Model) -> None:
        self.is_pair = hasattr(model, "encoder") and hasattr(model, "decoder")
        self.source = self.target = 0
        """The weights that a source and a target position passes through."""
        self.pairs = dict.fromkeys((Role.ENCODER, Role.CAUSAL, Role.CROSS), 0)
        """The width of the layers of each role that compare all positions, summed."""
        of_memory: set[nn.Module] = set()
        for _, layer in model.attention_layers():
            self.pairs[layer.role] += 0 if layer.subquadratic else layer.dim
            if layer.role is Role.CROSS:
                of_memory |= {part for name, part in layer.named_children() if name in ("key", "value", "key_value")}
        in_encoder = set(getattr(model, "encoder", nn.Module()).modules())
        in_head = set(model.head.modules())
        for module in model.modules():
            if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or module in in_head:
                continue
            count = module.weight.numel()
            if module in in_encoder or module in of_memory:
                self.source += count
            else:
                self.target += count
        self.target += _head_weights(model.head)

    def of_update(self, sizes_ND: SizeArray) -> float:
        """Returns the operations of the forward and backward passes over examples with these lengths."""
        lengths_ND = sizes_ND.reshape(len(sizes_ND), -1).astype(np.float64)
        source_N, target_N = lengths_ND[:, 0], lengths_ND[:, -1]
        if self.is_pair:
            weights = self.source * source_N.sum() + self.target * target_N.sum()
            squares = {
                Role.ENCODER: source_N @ source_N,
                Role.CAUSAL: target_N @ target_N,
                Role.CROSS: source_N @ target_N,
            }
        else:
            weights = (self.source + self.target) * lengths_ND.sum()
            squares = dict.fromkeys(self.pairs, (lengths_ND**2).sum())
        return float(6 * weights + 12 * sum(width * squares[role] for role, width in self.pairs.items()))


def _head_weights(head: nn.Module) -> int:
    """The weights of the output that a position passes through."""
    weight = head.bands[0] if isinstance(head, AdaptiveHead) else getattr(head, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else 0


class Clock:
    """Divides time between phases: on a CPU by the wall clock, on a GPU by events in its stream, read at log lines."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: deque[tuple[str, Any]] = deque()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.enter("other")

    def enter(self, phase: str) -> None:
        """Ends the current phase and begins another."""
        if self._on_gpu:
            now: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((phase, now))
        while len(self._marks) > 256 and (not self._on_gpu or self._marks[1][1].query()):  # has passed: nothing waits
            self._add_first()

    def read(self) -> dict[str, float]:
        """Returns the seconds of each phase so far; on a GPU, waits for it."""
        self.enter(self._marks[-1][0])
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        while len(self._marks) > 1:
            self._add_first()
        return dict(self.seconds)

    def _add_first(self) -> None:
        phase, start = self._marks.popleft()
        end = self._marks[0][1]
        self.seconds[phase] += start.elapsed_time(end) / 1000 if self._on_gpu else end - start


class Speed:
    """The speed figures of a run, in this process.

    Args:
        model: The model, before it is sharded.
        config: The config of the run.
        device: Where it computes.
    """

    def __init__(self, model: Model, config: "TrainConfig", *, device: torch.device) -> None:
        self._config, self._device = config, device
        self._flops = ModelFlops(model)
        self._profile: Profile | None = None
        self._say: Callable[[str], None] = print
        self.card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        self.peak = config.log.peak_tflops or (peak_tflops(self.card, config.precision) if self.card else None)
        self._restart()

    def _restart(self) -> None:
        self._clock = Clock(self._device)
        self._sums = dict.fromkeys(("positions", "real", "flops"), 0.0)
        self._read = (dict(self._clock.seconds), dict(self._sums))

    def lines(self) -> list[str]:
        """Returns what to say at the start of a run."""
        if self.card is None or self.peak is not None:
            return []
        return [f"The peak of {self.card} in {self._config.precision} is not known: set log.peak_tflops to log mfu."]

    @contextmanager
    def session(self, say: Callable[[str], None], *, trace: Path | None) -> Iterator[None]:
        """Context of the training: prints the time in each phase at its end, and writes the trace of `profile`.

        Args:
            say: Prints a line.
            trace: The folder of the trace. None: another process writes one.
        """
        self._say = say
        self._restart()
        if self._config.profile is not None and trace is not None:
            self._profile = Profile(self._config.profile, trace, self._device)
        try:
            yield
        finally:
            if self._profile is not None and (line := self._profile.close()):
                say(line)
        if self._sums["positions"]:
            for line in self.table():
                say(line)

    def begin(self, update: int) -> None:
        """Begins an update."""
        if self._profile is not None:
            self._profile.begin(update)

    def enter(self, phase: str) -> None:
        """Ends the current phase of the update and begins another of PHASES."""
        self._clock.enter(phase)

    def end(self, update: int) -> None:
        """Ends an update."""
        self._clock.enter("other")
        if self._profile is not None and update >= self._profile.last and (line := self._profile.close()):
            self._say(line)

    def loading(
        self, updates: Iterator[tuple[Update, list[Any]]], sizes_ND: SizeArray
    ) -> Iterator[tuple[Update, list[Any]]]:
        """Yields the updates, and counts the wait for them, their positions and their padding."""
        while True:
            self.enter("data")
            item = next(updates, None)
            self.enter("other")
            if item is None:
                return
            read = [indices for indices, _ in real_batches([item[0]])]
            if read:
                real_ND = sizes_ND[np.concatenate(read)]
                self._sums["positions"] += float(positions([item[0]], sizes_ND).sum())
                self._sums["real"] += float(real_ND.sum())
                self._sums["flops"] += self._flops.of_update(real_ND)
            yield item

    def sums(self, before: Mapping[str, float]) -> dict[str, float]:
        """Returns the sums of a log interval: those of `before`, and what came since the last call."""
        seconds, (seconds_before, sums_before) = self._clock.read(), self._read
        new = {"data_seconds": seconds["data"] - seconds_before["data"]}
        new |= {name: value - sums_before[name] for name, value in self._sums.items()}
        self._read = seconds, dict(self._sums)
        return {SPEED + name: before.get(SPEED + name, 0.0) + value for name, value in new.items()}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the figures of a log line, from the sums of its interval and its seconds."""
        part = {name.removeprefix(SPEED): value for name, value in sums.items() if name.startswith(SPEED)}
        if not part.get("positions"):
            return {}
        seconds = max(sums["seconds"], 1e-9)
        used = {} if self.peak is None else {"mfu": part["flops"] / seconds / (self.peak * 1e12)}
        padding = 1 - part["real"] / part["positions"]
        return {**used, "padding": padding, "waiting": min(part["data_seconds"] / seconds, 1.0)}

    def table(self) -> list[str]:
        """Returns a table of the time in each phase."""
        seconds = self._clock.read()
        total = max(sum(seconds.values()), 1e-9)
        rows = [(name, f"{value:,.1f} s", f"{value / total:.1%}") for name, value in seconds.items()]
        return ["Time (other: logs, validation, checkpoints):", *aligned(rows, left=1)]


def profiled_updates(text: str) -> tuple[int, int]:
    """Returns the first and the last update of `profile=START:STOP`. Raises UserError if it is not of this form."""
    found = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"profile={text[:200]}: must be START:STOP, the numbers of the first and the last update to profile.",
            "For example profile=10:12; updates are numbered from 1.",
        )
    if last - first >= MAX_PROFILED:
        raise UserError(
            f"profile={text}: a trace holds at most {MAX_PROFILED} updates, not {last - first + 1:,}.",
            f"Set profile={first}:{first + 2}, for example.",
        )
    return first, last


class Profile:
    """Records updates with torch's profiler and writes a trace (Chrome's JSON format) into a folder."""

    def __init__(self, updates: str, folder: Path, device: torch.device) -> None:
        self.first, self.last = profiled_updates(updates)
        self.path = folder / f"profile_{self.first}-{self.last}.json"
        self._device = device
        self._profiler: Any = None

    def begin(self, update: int) -> None:
        """Starts to record if `update` is one of those to profile."""
        if self._profiler is None and self.first <= update <= self.last:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=kinds)
            self._profiler.start()

    def close(self) -> str | None:
        """Writes what was recorded, and returns a line about it; None if nothing was."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return None
        profiler.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            profiler.export_chrome_trace(file.name)
        return f"The profile is in {self.path}: open it at https://ui.perfetto.dev or chrome://tracing."
