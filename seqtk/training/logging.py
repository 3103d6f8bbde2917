"""What a run says of itself: JSON lines, TensorBoard, and a bar on a terminal or plain lines elsewhere."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from seqtk.training.parallel import World

Figures = Mapping[str, float | int | str]


class Logger:
    """Writes the figures of the first process; those of the others are silent.

    A resumed run takes back what was logged after the update that it goes on from, and that update's validation if it
    is still owed, so that nothing is there twice.
    """

    def __init__(
        self,
        save_dir: str,
        *,
        world: World,
        tensorboard: bool,
        resumed_at: int,
        total: int,
        validation_owed: bool = False,
    ) -> None:
        self._bar: tqdm[Any] | None = None
        self._lines: Any = None
        self._writer: Any = None
        self._said: set[str] = set()
        self._silent = not world.is_first
        if self._silent:
            return
        path = Path(save_dir) / "log.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _take_back(path, resumed_at, validation_owed=validation_owed)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        if tensorboard:
            # Takes a second to import, so only where it is used.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(Path(save_dir) / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None, flush_secs=30
            )
        if sys.stderr.isatty():
            self._bar = tqdm(total=total or None, initial=resumed_at, unit="update", dynamic_ncols=True, leave=True)

    def say(self, message: str) -> None:
        """Print one line, above the bar if there is one."""
        if not self._silent:
            tqdm.write(message, file=sys.stderr)

    def progress(self, update: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(update - self._bar.n)

    def figures(self, kind: str, update: int, figures: Figures) -> None:
        """Log the figures of `kind` (train, valid) at this update, everywhere."""
        if self._silent:
            return
        self._lines.write(json.dumps({"kind": kind, "update": update, **figures}) + "\n")
        shown = {name: value for name, value in figures.items() if not isinstance(value, str)}
        self.say(f"{kind:5} | update {update:>7,} | " + " | ".join(f"{k} {short(v)}" for k, v in shown.items()))
        for name, value in figures.items():
            if isinstance(value, str) and name not in self._said:  # a signature: once is enough for the eye
                self._said.add(name)
                self.say(f"{name} {value}")
        if self._writer is not None:
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", value, update)

    def scalars(self, kind: str, update: int, values: Mapping[str, float]) -> None:
        """Plot values that would crowd the lines."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, update)

    def text(self, name: str, update: int, markdown: str) -> None:
        """Keep a text in TensorBoard."""
        if self._writer is not None:
            self._writer.add_text(name, markdown, update)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in (self._bar, self._lines, self._writer):
            if sink is not None:
                sink.close()


def short(value: float) -> str:
    """A figure as the eye wants it: four digits that count, or all of a whole number."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 or abs(value) >= 1e9 else f"{value:,.0f}"
    return f"{value:,}"


def _take_back(path: Path, update: int, *, validation_owed: bool) -> None:
    """Leave the whole lines up to `update`, without its validation if that is owed; of a new run, none."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            read = json.loads(line)
            comes_again = validation_owed and (read["kind"], read["update"]) == ("valid", update)
            if read["update"] <= update and update > 0 and not comes_again:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
