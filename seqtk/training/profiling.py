"""The setting `profile=START:STOP`: torch's profiler records a trace of the updates from START to STOP."""

import re
from pathlib import Path
from typing import Any

import torch

from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file

MAX_PROFILED = 100
"""Maximum number of updates in a trace. Each update has thousands of events."""


def profiled_updates(text: str) -> tuple[int, int]:
    """Returns (first update, last update) of `profile=START:STOP`. Raises UserError for text of a different form."""
    found = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"profile={text[:200]}: must be START:STOP, the numbers of the first and the last update to profile.",
            "For example profile=10:12; updates are numbered from 1.",
        )
    if last - first >= MAX_PROFILED:
        raise UserError(
            f"profile={text}: a trace can have at most {MAX_PROFILED} updates, not {last - first + 1:,}.",
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
        """Starts recording if `update` is to be profiled."""
        if self._profiler is None and self.first <= update <= self.last:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            # Without `acc_events`, torch 2.11 warns that the events of earlier cycles are lost.
            self._profiler = torch.profiler.profile(activities=kinds, acc_events=True)
            self._profiler.start()

    def close(self) -> str | None:
        """Writes the trace, and returns a message with its path, or None if nothing was recorded."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return None
        profiler.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            profiler.export_chrome_trace(file.name)
        return f"The profile is in {self.path}: open it at https://ui.perfetto.dev or chrome://tracing."
