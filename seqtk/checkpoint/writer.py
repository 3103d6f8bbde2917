"""Writes files in a thread while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Writer:
    """Runs functions that write files, one at a time, either in a thread or in the caller.

    Use it as a context manager. `run`, `wait` and leaving the context wait for the previous function and raise its
    exception. If another exception leaves the context, that one is raised, and the function's exception is reported.

    Args:
        asynchronous: Whether functions run in a thread. The data that they write must then not change.
        report: Prints a line for the user.
    """

    def __init__(self, *, asynchronous: bool, report: Callable[[str], None] = print) -> None:
        self.asynchronous, self.report = asynchronous, report
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # the thread starts with the first function
        self._task: Future[object] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            self.report(f"Warning: the last checkpoint was not written. {failure}")

    def run(self, function: Callable[[], object]) -> None:
        """Waits for the previous function, then runs `function`, or starts it in the thread."""
        self.wait()
        if self.asynchronous:
            self._task = self._thread.submit(function)
        else:
            function()

    def wait(self) -> None:
        """Waits until everything is written. An interrupt (Ctrl-C) stops the waiting, but not the writing."""
        if self._task is not None:
            self._task.exception()  # after an interrupt here, the next call waits again
            task, self._task = self._task, None
            task.result()
