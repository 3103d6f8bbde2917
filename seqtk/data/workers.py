"""Worker processes that apply one function to a stream of items, in order, with few items under way at a time."""

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
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[..., Any], items: Iterable[tuple[Any, ...]], *, workers: int
) -> Generator[Any, None, None]:
    """`function(*item)` for each item, in order; by `workers` fresh processes, or in this one if `workers` is 1.

    The function is sent to each process once. At most three items per worker are read ahead, whatever the stream.
    """
    if workers <= 1:
        yield from (function(*item) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(function,))
    try:
        under_way: deque[Future[Any]] = deque()
        for item in items:
            under_way.append(pool.submit(_apply, *item))
            if len(under_way) >= _IN_FLIGHT_PER_WORKER * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "A worker process came to a sudden end, most likely for want of memory: try fewer workers=.",
            "(A script that calls this needs its `if __name__ == '__main__':`, or workers=1.)",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(function: Callable[..., Any]) -> None:
    """Runs once in each worker. Ctrl-C is left to the parent, which then ends the workers."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _function = function


def _apply(*item: Any) -> Any:
    return _function(*item)
