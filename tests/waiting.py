"""Waits for other processes and threads."""

import time
from collections.abc import Callable

PATIENCE = 300.0
"""Seconds after which a test stops waiting. The limit allows for a busy machine. Only a failing test reaches it."""


def wait_until(
    condition: Callable[[], object],
    *,
    running: Callable[[], object] = lambda: True,
    output: Callable[[], str] = lambda: "",
    pause: float = 0.02,
) -> None:
    """Returns as soon as `condition` is true.

    Raises AssertionError after PATIENCE seconds, or, with the message `output`, as soon as `running` is false.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert running(), output()
        assert time.monotonic() < deadline, f"waited {PATIENCE} seconds"
        time.sleep(pause)
