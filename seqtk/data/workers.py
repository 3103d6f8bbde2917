"""Maps a function over a stream of items in worker processes, in order and with few items in memory."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from seqtk.utils.errors import UserError

_IN_FLIGHT_PER_WORKER = 3
_function: Callable[..., Any]


def available_cores() -> int:
    """Returns the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[..., Any], items: Iterable[tuple[Any, ...]], *, workers: int
) -> Generator[Any, None, None]:
    """Yields `function(*item)` for each item, in order. With one worker, this process computes the results.

    The function is sent to each worker once. At most three items per worker are prefetched.

    Raises UserError if a worker process ends unexpectedly.
    """
    if workers <= 1:
        yield from (function(*item) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=set_function, initargs=(function,))
    try:
        pending: deque[Future[Any]] = deque()
        for item in items:
            pending.append(pool.submit(call_function, *item))
            if len(pending) >= _IN_FLIGHT_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "A worker process ended unexpectedly, probably because memory ran out. Lower workers=.",
            "In a script, call this function inside `if __name__ == '__main__':`, or set workers=1.",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def set_function(function: Callable[..., Any]) -> None:
    """Initializes a worker process for `call_function`. It ignores Ctrl-C, because the parent process ends it."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _function = function


def call_function(*item: Any) -> Any:
    """Calls the function of this worker process."""
    return _function(*item)
