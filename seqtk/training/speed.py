"""Measures the speed of a run: the time of each phase, the share of padding, and the FLOPs utilization (MFU)."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seqtk.data.plan import SizeArray, Update, positions, real_batches
from seqtk.models import Model
from seqtk.training.flops import ModelFlops, peak_tflops
from seqtk.training.profiling import Profile

if TYPE_CHECKING:
    from seqtk.training.config import TrainConfig

PHASES = ("data", "forward", "backward", "communication", "optimizer", "other")
SPEED = "speed/"
"""The prefix of names that mark speed figures in the sums of a log interval."""


class Clock:
    """Measures the time of each phase, on a CPU by the wall clock, and on a GPU by CUDA events."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: deque[tuple[str, Any]] = deque()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.enter("other")

    def enter(self, phase: str) -> None:
        """Ends the current phase and begins `phase`."""
        if self._on_gpu:
            now: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((phase, now))
        # `query` is true if the event has occurred, so that reading it does not wait.
        while len(self._marks) > 256 and (not self._on_gpu or self._marks[1][1].query()):
            self._add_first()

    def read(self) -> dict[str, float]:
        """Returns the seconds of each phase so far. Waits for the GPU."""
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
    """Collects the speed figures of a run in this process.

    Args:
        model: The model, before it is sharded.
        config: The config of the run.
        device: The device of the run.
    """

    def __init__(self, model: Model, config: "TrainConfig", *, device: torch.device) -> None:
        self._config, self._device = config, device
        self._profile: Profile | None = None
        self._say: Callable[[str], None] = print
        self.gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        self.peak = config.log.peak_tflops or (peak_tflops(self.gpu, config.precision) if self.gpu else None)
        self._flops = None if self.peak is None else ModelFlops(model)
        self._restart()

    def _restart(self) -> None:
        self._clock = Clock(self._device)
        self._sums = dict.fromkeys(("positions", "real", "flops"), 0.0)
        self._read = (dict(self._clock.seconds), dict(self._sums))

    def lines(self) -> list[str]:
        """Returns lines to print at the start of a run: a warning if the peak FLOP/s of its GPU are unknown."""
        if self.gpu is None or self.peak is not None:
            return []
        return [
            f"The peak FLOP/s of {self.gpu} in {self._config.precision} are unknown. Set log.peak_tflops to log mfu."
        ]

    @contextmanager
    def session(self, say: Callable[[str], None], *, trace: Path | None) -> Iterator[None]:
        """Context manager for training. At the end, prints the time of each phase and writes the trace of `profile`.

        Args:
            say: A function that prints a line.
            trace: The folder of the trace. None: another process writes the trace.
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
        """Ends the current phase of the update and begins `phase`, one of PHASES."""
        self._clock.enter(phase)

    def end(self, update: int) -> None:
        """Ends an update."""
        self._clock.enter("other")
        if self._profile is not None and update >= self._profile.last and (line := self._profile.close()):
            self._say(line)

    def loading(
        self, updates: Iterator[tuple[Update, list[Any]]], sizes_ND: SizeArray, *, joined: bool
    ) -> Iterator[tuple[Update, list[Any]]]:
        """Yields the updates. Measures the time spent waiting for them, and counts their positions and padding.

        `joined`: True if a batch pads all sides to the same length.
        """
        while True:
            self.enter("data")
            item = next(updates, None)
            self.enter("other")
            if item is None:
                return
            read = [indices for indices, _ in real_batches([item[0]])]
            if read:
                real_ND = sizes_ND[np.concatenate(read)]
                self._sums["positions"] += float(positions([item[0]], sizes_ND, joined=joined).sum())
                self._sums["real"] += float(real_ND.sum())
                self._sums["flops"] += 0.0 if self._flops is None else self._flops.of_update(real_ND)
            yield item

    def sums(self, before: Mapping[str, float]) -> dict[str, float]:
        """Returns the totals of a log interval: seconds of waiting for data, positions, real tokens and FLOPs.

        They are the totals in `before`, which earlier calls returned for this interval, plus those since the last call.
        """
        seconds, (seconds_before, sums_before) = self._clock.read(), self._read
        new = {"data_seconds": seconds["data"] - seconds_before["data"]}
        new |= {name: value - sums_before[name] for name, value in self._sums.items()}
        self._read = seconds, dict(self._sums)
        return {SPEED + name: before.get(SPEED + name, 0.0) + value for name, value in new.items()}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the speed figures of a log line from the sums of its interval, which include `seconds`."""
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
        return [
            "Time (other: logs, validation, checkpoints):",
            *(f"  {name:<13}  {value:>9,.1f} s  {value / total:>6.1%}" for name, value in seconds.items()),
        ]
