"""Functions for benchmarks: they measure the time and memory of a function, and run work in separate processes."""

import ctypes
import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from seqtk.attention import attentions

T = TypeVar("T")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's numbers of these settings of malloc
MIXTURES = {
    "random+dot": ["random", "dot"],
    "dense+dot": ["dense", "dot"],
    "random+dense": ["random", "dense"],
    "factorized_random+dot": ["factorized_random", "dot"],
}
"""Name of a mixture of Synthesizers → its parts. Benchmarks measure each mixture like a registered layer."""


def kind_of(name: str) -> str:
    """Returns the registered kind of a layer or of one of MIXTURES."""
    return "synthesizer_mixture" if name in MIXTURES else name


def settings_of(name: str, **sizes: Any) -> dict[str, Any]:
    """Returns the settings of a layer: the `sizes` that the layer has as settings and, for a mixture, its parts."""
    fields = {field.name for field in dataclasses.fields(attentions.config_type(kind_of(name)))}
    settings = {key: value for key, value in sizes.items() if key in fields}
    return settings | ({"parts": MIXTURES[name]} if name in MIXTURES else {})


def in_a_process(work: Callable[[], Iterable[T]]) -> tuple[list[T], int | None]:
    """Runs `work` in a forked process. Returns (list of the values that `work` yields, exit code).

    The process inherits the imports of the parent. The parent must not have used torch's threads before.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        for item in work():
            sender.send(item)

    child = context.Process(target=run)
    child.start()
    sender.close()
    items = []
    while True:
        try:
            items.append(receiver.recv())
        except EOFError:
            break
    child.join()
    return items, child.exitcode


def seconds(work: Callable[[], object], device: str) -> float:
    """Returns the wall-clock time of `work` in seconds, including the time until a GPU has finished its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def memory(work: Callable[[], object], device: str) -> float:
    """Returns the increase of memory at the peak of `work`, in GiB.

    On a CPU, this is resident memory. `work` runs twice, and `return_freed_memory` must be called before. On a GPU, it
    is allocated memory.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    work()  # memory that libraries keep after the first call is not counted
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    work()
    return max(_status("VmHWM") - before, 0) / 2**20


def return_freed_memory() -> None:
    """Makes malloc return freed memory to the system. Otherwise `memory` would not count reused memory."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


def keep_freed_memory() -> None:
    """Makes malloc keep and reuse freed memory, as in training."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**25)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**30)


def _status(key: str) -> int:
    """Returns the value of `key` in /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def has_bf16() -> bool:
    """Returns True if the CPU has instructions for bfloat16. Other CPUs emulate it."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class Worker:
    """One or more processes that perform an update for each call, and report its speed.

    Each process prints a value when it is ready, and a value for each line that it reads (see `serve`).

    Args:
        command: The command that each process runs.
        processes: The number of processes. If there are several, they get the environment variables of torchrun.
    """

    def __init__(self, command: Sequence[str], *, processes: int = 1) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        worlds: list[dict[str, str]] = [{}] if processes == 1 else _worlds(processes)
        self._processes = [subprocess.Popen(command, env={**os.environ, **world}, **pipes) for world in worlds]
        self.ready = self._answers()[0]

    def __call__(self) -> float:
        """Requests a value from each process, and returns the sum of the values."""
        for process in self._processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return sum(self._answers())

    def _answers(self) -> list[Any]:
        lines = [process.stdout.readline() for process in self._processes]
        for line, process in zip(lines, self._processes, strict=True):
            if not line:
                raise SystemExit(f"A worker process ended early, with exit code {process.wait()}.")
        return [json.loads(line) for line in lines]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            process.wait()


def _worlds(processes: int) -> list[dict[str, str]]:
    """Returns, for each process, the environment variables that torchrun would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    worlds = [{"RANK": rank, "LOCAL_RANK": rank, **shared} for rank in range(processes)]
    return [{name: str(value) for name, value in world.items()} for world in worlds]


def serve(update: Callable[[], float], *, warm_up: int) -> None:
    """The main loop of a worker process: for each line that it reads, it performs an update and prints the speed.

    Args:
        update: A function that performs an update and returns its number of tokens or examples.
        warm_up: The number of updates before the worker is ready.
    """
    for _ in range(warm_up):
        update()
    print("true", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        amount = update()
        print(amount / (time.perf_counter() - started), flush=True)


def table(corner: str, rows: dict[str, dict[str, str]]) -> str:
    """Returns a table in Markdown. `rows` maps row → column → text, and `corner` is the heading of the row names."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)
