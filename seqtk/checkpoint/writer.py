"""Writes files in a thread while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Writer:
    """Runs functions that write files one after another, either in a thread or at once.

    `run`, `wait` and the end of the block wait for the function before, and raise its error. If the block ends by
    another exception, that one is raised, and the error of the function is reported.

    Args:
        asynchronous: Whether functions run in a thread. Then nothing may change the data that they write.
        report: Shows the user a line.
    """

    def __init__(self, *, asynchronous: bool, report: Callable[[str], None] = print) -> None:
        self.asynchronous, self.report = asynchronous, report
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # starts its thread for the first function
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
        """Waits until everything is written. An interrupt (Ctrl-C) ends the call, but not the function."""
        if self._task is not None:
            self._task.exception()  # if an interrupt ends this line, the next call waits again
            task, self._task = self._task, None
            task.result()
