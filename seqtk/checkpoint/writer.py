"""Writes files in a thread, so that training continues meanwhile."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import torch


class Writer:
    """Runs one function after another that writes files: in a thread, or at once.

    The next function, `wait`, and the end of the block wait for the one before, and raise its error. After another
    exception, the block waits too, and raises that exception.

    Args:
        asynchronous: Whether functions run in a thread. Then nothing may change what they read.
    """

    def __init__(self, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def run(self, function: Callable[[], object]) -> None:
        """Waits for the function before, then runs `function`, or starts it."""
        self.wait()
        if not self.asynchronous:
            function()
            return
        # Its copies from a GPU wait for what this thread has asked of the device so far, and not the reverse.
        event = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._run, args=(function, event), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until everything is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, function: Callable[[], object], event: torch.cuda.Event | None) -> None:
        try:
            with ExitStack() as stack:
                if event is not None:
                    stream = torch.cuda.Stream(event.device)  # type: ignore[no-untyped-call]
                    stream.wait_event(event)
                    stack.enter_context(torch.cuda.stream(stream))
                function()
        except BaseException as error:  # the other thread raises it
            self._error = error
