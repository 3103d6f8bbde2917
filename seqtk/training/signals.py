"""Stops all processes of a run after the current update, with a checkpoint, when one of them receives a signal."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from seqtk.training.parallel import Engine

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SLURM can be configured to send SIGUSR1 before the end of a job. It sends SIGTERM at the end."""
AGAIN = 1.0
"""A second signal ends the run at once only if it arrives after this many seconds, because torchrun forwards Ctrl-C to
processes that have already received it."""
LAUNCHER_CHECK = 1.0
"""Seconds between two checks that torchrun is still running."""


class StopSignal:
    """Lets all processes decide together if the run stops, because a signal may reach only some of them.

    Args:
        engine: The engine of the run.
        hours: The number of hours after which the run stops, as if it received SIGUSR1. 0: no limit.
    """

    def __init__(self, engine: Engine, *, hours: float) -> None:
        self.engine = engine
        self.deadline = time.monotonic() + 3600 * hours if hours else math.inf
        self.is_late = False
        """True if the run stops because of the time limit."""
        self.number = 0
        """The signal that made all processes stop, or 0."""
        self.noted = 0
        """The signal that this process has received, or 0."""

    def __bool__(self) -> bool:
        return self.number != 0

    def agree(self) -> bool:
        """Returns True if the run stops: a process has received a signal or reached the time limit. Collective."""
        received, late = self.engine.sums([float(self.noted), float(time.monotonic() >= self.deadline)])
        if received and not self.number:
            self.number = self.noted or signal.SIGTERM
        elif late and not self.number:
            self.number, self.is_late = signal.SIGUSR1, True
        return bool(self)

    @contextmanager
    def caught(self, last_update: Callable[[], int]) -> Iterator[None]:
        """Context manager in which a signal stops the run after the current update, with a checkpoint.

        The same signal again ends the run at once. A signal also interrupts a validation. The run is saved before each
        validation.

        Args:
            last_update: A function that returns the update after which the run will stop, for the message.
        """
        if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
            yield
            return
        noted_at = 0.0

        def note(number: int, _: Any) -> None:
            nonlocal noted_at
            if self.noted:
                if self.noted == number and time.monotonic() - noted_at > AGAIN:
                    raise KeyboardInterrupt(number)
                return
            self.noted, noted_at = number, time.monotonic()
            if self.engine.is_first:
                line = f"Stopping after update {last_update():,}; send the signal (Ctrl-C) again to stop at once.\n"
                with suppress(OSError):  # the terminal may be closed
                    os.write(2, f"{chr(10) if os.isatty(2) else ''}{line}".encode())  # print may be interrupted

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def ending_with_launcher() -> Iterator[None]:
    """Context manager that sends SIGTERM to this process if torchrun, which started it, is killed."""
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(LAUNCHER_CHECK):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, name="launcher", daemon=True).start()
    try:
        yield
    finally:
        done.set()
