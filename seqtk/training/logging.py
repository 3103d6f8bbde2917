"""Training logs. A run writes its metrics to sinks: the console, JSON lines, TensorBoard, and Weights & Biases.

To add a sink, a plug-in registers a subclass of `Sink` under the name for `log.sinks`.
"""

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import IO, Any

from torch import Tensor
from tqdm import tqdm

from seqtk.config.registry import Registry
from seqtk.utils.files import disk_full_errors, write_text

Metrics = Mapping[str, float | int | str]
"""Name → value. A string is the signature of a metric, which records its settings."""


@dataclass(frozen=True)
class SinkConfig:
    """Base class of the configs of sinks."""


sinks: Registry["Sink"] = Registry("sink", SinkConfig)


@dataclass(frozen=True)
class RunInfo:
    """Information about a run that its sinks receive."""

    save_dir: Path
    resumed_at: int = 0
    """The update of the checkpoint from which the run resumes. 0: a new run."""
    pending_validation: bool = False
    """True if the run starts with the validation after update `resumed_at`."""
    max_updates: int = 0
    """The configured number of updates. 0: it is not set."""

    def keeps(self, kind: str, update: int) -> bool:
        """Returns True if a log keeps an entry of an earlier session.

        It does not keep entries whose update or validation is repeated.
        """
        repeated = self.pending_validation and kind.startswith("valid") and update == self.resumed_at
        return 0 < update <= self.resumed_at and not repeated


class Sink:
    """Base class of sinks. A sink receives the metrics of a run. Only the first process has sinks.

    By default all methods do nothing. `kind` is `train`, `valid`, `valid/NAME` for another validation set, `examples`
    (the number of examples read from each of several corpora), or `attention`.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def check(cls) -> None:
        """Raises UserError if the sink is not available. Called before anything is written."""

    def start(self, run: RunInfo) -> None:
        """Opens the sink, and removes entries of earlier sessions for which `run.keeps` is false."""

    def info(self, message: str) -> None:
        """Shows a line for the user."""

    def progress(self, update: int) -> None:
        """Reports the number of finished updates."""

    def status(self, text: str) -> None:
        """Shows a status such as "compiling". An empty text removes it."""

    def metrics(self, kind: str, update: int, values: Metrics) -> None:
        """Writes the values of a log line of training or validation."""

    def scalars(self, kind: str, update: int, values: Mapping[str, float]) -> None:
        """Writes values that are plotted but do not appear in log lines."""

    def text(self, name: str, update: int, markdown: str) -> None:
        """Writes a sample output."""

    def histogram(self, name: str, update: int, values: Tensor) -> None:
        """Writes the distribution of the elements of a tensor."""

    def close(self) -> None:
        """Closes the sink."""


@dataclass(frozen=True)
class ConsoleConfig(SinkConfig):
    """Prints lines on standard error, with a progress bar on a terminal."""


@sinks.register("console", ConsoleConfig)
class Console(Sink):
    """Prints one line per log interval and validation."""

    def start(self, run: RunInfo) -> None:
        self.shown: set[str] = set()
        self.bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            options: dict[str, Any] = {"unit": "update", "dynamic_ncols": True, "leave": True}
            self.bar = tqdm(total=run.max_updates or None, initial=run.resumed_at, **options)

    def info(self, message: str) -> None:
        with suppress(OSError):  # the run continues if the terminal is closed
            tqdm.write(message, file=sys.stderr)

    def progress(self, update: int) -> None:
        if self.bar is not None:
            self.bar.update(update - self.bar.n)

    def status(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text)

    def metrics(self, kind: str, update: int, values: Metrics) -> None:
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        shown = " | ".join(f"{name} {format_number(value)}" for name, value in numbers.items())
        self.info(f"{kind:5} | update {update:>7,} | {shown}")
        for name, value in values.items():
            if isinstance(value, str) and name not in self.shown:  # a signature is printed once
                self.shown.add(name)
                self.info(f"{name} {value}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@dataclass(frozen=True)
class JsonlConfig(SinkConfig):
    """Writes one JSON object per line to save_dir/log.jsonl."""


@sinks.register("jsonl", JsonlConfig)
class Jsonl(Sink):
    """Writes a line `{"kind": …, "update": …, metric: value, …}` per log interval and validation.

    JSON has no NaN and no infinity, so these values are written as null.
    """

    def start(self, run: RunInfo) -> None:
        self.path = run.save_dir / "log.jsonl"
        self.file: IO[str] | None = None
        if self.path.is_file():
            kept = [line for line in self.path.read_bytes().split(b"\n") if _kept(line, run)]
            write_text(self.path, "".join(f"{line.decode()}\n" for line in kept))

    def metrics(self, kind: str, update: int, values: Metrics) -> None:
        with disk_full_errors(self.path):
            if self.file is None:  # not in `start`, because the start of a later sink may fail
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("a", encoding="utf-8", buffering=1)
            finite = {
                name: value if isinstance(value, str) or isfinite(value) else None for name, value in values.items()
            }
            self.file.write(json.dumps({"kind": kind, "update": update, **finite}) + "\n")

    def close(self) -> None:
        if self.file is not None:
            with disk_full_errors(self.path):
                self.file.close()


def _kept(line: bytes, run: RunInfo) -> bool:
    try:
        entry = json.loads(line.decode())
        return run.keeps(entry["kind"], entry["update"])
    except (ValueError, KeyError, TypeError):  # incomplete because the run was killed
        return False


@dataclass(frozen=True)
class TensorBoardConfig(SinkConfig):
    """Writes curves, attention statistics and sample outputs to save_dir/tensorboard."""


@sinks.register("tensorboard", TensorBoardConfig)
class TensorBoard(Sink):
    """Writes TensorBoard event files."""

    def start(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.hook_before, threading.excepthook = threading.excepthook, self._except_hook
        self.writer_type: Any = SummaryWriter
        self.folder = run.save_dir / "tensorboard"
        self.purge_step = run.resumed_at + 1 if run.resumed_at else None

    def _except_hook(self, error: threading.ExceptHookArgs) -> None:
        """Prints the exception of a thread, unless it is TensorBoard's thread.

        TensorBoard's writer raises the exception of its thread again in the next call.
        """
        if not type(error.thread).__module__.startswith("tensorboard."):
            self.hook_before(error)

    @cached_property
    def writer(self) -> Any:
        """The writer of the event file, created with the first entry because the start of a later sink may fail."""
        return self.writer_type(str(self.folder), purge_step=self.purge_step, flush_secs=30)

    def metrics(self, kind: str, update: int, values: Metrics) -> None:
        self.scalars(kind, update, {name: value for name, value in values.items() if not isinstance(value, str)})

    def scalars(self, kind: str, update: int, values: Mapping[str, float]) -> None:
        with disk_full_errors(self.folder / "events.out.tfevents"):
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, update)

    def text(self, name: str, update: int, markdown: str) -> None:
        with disk_full_errors(self.folder / "events.out.tfevents"):
            self.writer.add_text(name, markdown, update)

    def histogram(self, name: str, update: int, values: Tensor) -> None:
        with disk_full_errors(self.folder / "events.out.tfevents"):
            self.writer.add_histogram(name, values, update)

    def close(self) -> None:
        try:
            if "writer" in vars(self):
                with disk_full_errors(self.folder / "events.out.tfevents"):
                    self.writer.close()
        finally:
            if threading.excepthook == self._except_hook:
                threading.excepthook = self.hook_before


class Logger:
    """Forwards all calls to the sinks of the run. Processes other than the first have no sinks."""

    def __init__(self, configs: Sequence[SinkConfig], run: RunInfo) -> None:
        self.sinks: list[Sink] = []
        try:
            for config in configs:
                sink = sinks.build(config)
                sink.start(run)
                self.sinks.append(sink)
        except BaseException:
            self.close()
            raise

    def info(self, message: str) -> None:
        for sink in self.sinks:
            sink.info(message)

    def progress(self, update: int) -> None:
        for sink in self.sinks:
            sink.progress(update)

    def status(self, text: str) -> None:
        for sink in self.sinks:
            sink.status(text)

    def metrics(self, kind: str, update: int, values: Metrics) -> None:
        for sink in self.sinks:
            sink.metrics(kind, update, values)

    def scalars(self, kind: str, update: int, values: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.scalars(kind, update, values)

    def text(self, name: str, update: int, markdown: str) -> None:
        for sink in self.sinks:
            sink.text(name, update, markdown)

    def histogram(self, name: str, update: int, values: Tensor) -> None:
        for sink in self.sinks:
            sink.histogram(name, update, values)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def format_number(value: float) -> str:
    """Formats a float with four significant digits, and an integer with all digits."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 or abs(value) >= 1e9 else f"{value:,.0f}"
    return f"{value:,}"
