"""Tiny training runs in separate processes. They start quickly: a server that has imported seqtk forks them."""

import json
import multiprocessing
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from seqtk.checkpoint.restore import load_checkpoint
from tests.waiting import PATIENCE, wait_until

UPDATES = 60
SETTINGS = (
    f"device=cpu threads=1 max_updates={UPDATES} checkpoint.every=10 validation.every=30 log.every=1 "
    "log.tensorboard=false batch.max_tokens=400 model.dim=16 model.ffn_dim=32 model.heads=2 model.encoder.layers=1 "
    "model.decoder.layers=1 attention.dropout=0.1 schedule.warmup_updates=10 optimizer.lr=0.005 "
    "parallel={kind:ddp,timeout:20}"
).split()
TIMES = {"tokens_per_second", "memory_gib", "minutes", "waiting"}
NOTHING: Mapping[str, str] = {}
FILE_LIMIT = 8
"""The maximum size of a file in bytes while the disk is full."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["seqtk.cli.train", "seqtk.training.trainer", "tests.e2e.runs"])


class Run:
    """A run of one or two processes.

    Args:
        corpus, save_dir: The data and the folder of the run.
        settings: Settings in addition to SETTINGS. They override equal keys.
        processes: The number of processes.
        full_at: Part of a file name. The disk is full as soon as a file whose name contains this part is opened.
        environment: Additional environment variables.
    """

    def __init__(
        self,
        corpus: Path,
        save_dir: Path,
        *settings: str,
        processes: int = 1,
        full_at: str | None = None,
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        keys = {setting.partition("=")[0] for setting in settings}
        kept = [setting for setting in SETTINGS if setting.partition("=")[0] not in keys]
        self.save_dir, self._printed = save_dir, bytearray()
        arguments = [f"task.data={corpus}", f"save_dir={save_dir}", *kept, *settings]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        reader, output = context.Pipe(duplex=False)  # a file would fail when the disk is full
        self.processes = [
            context.Process(
                target=_main, args=(arguments, output, dict(environment) | _world(rank, processes, port), full_at)
            )
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()
        output.close()
        self._reader = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._reader.start()

    def _read(self, reader: Any) -> None:
        while part := os.read(reader.fileno(), 2**16):
            self._printed += part

    def wait(self, timeout: float = PATIENCE) -> int:
        """Waits until all processes have ended. Returns the largest exit code."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0.1))
            assert process.exitcode is not None, self.printed
        return max(abs(process.exitcode or 0) for process in self.processes)

    def kill(self, *ranks: int) -> None:
        """Kills the processes `ranks` with SIGKILL, and all other processes that do not end within six seconds."""
        for rank in ranks:
            self.processes[rank].kill()
        for process in self.processes:
            process.join(6)
            process.kill()
            process.join()

    @property
    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def printed(self) -> str:
        """The output that the processes have printed so far."""
        self._reader.join(0.0 if self.is_running else 5.0)
        return self._printed.decode(errors="replace")


def _world(rank: int, processes: int, port: int) -> dict[str, str]:
    """Returns the environment variables that torchrun would set."""
    if processes == 1:
        return {}
    world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    return {**world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _main(arguments: Sequence[str], output: Any, environment: dict[str, str], full_at: str | None) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    os.environ |= environment
    if full_at is not None:
        sys.addaudithook(lambda event, given: _limit_files(event, given, full_at))
    from seqtk.cli.train import main

    main(list(arguments))


def _limit_files(event: str, given: tuple[Any, ...], name: str) -> None:
    """Limits the size of files, like a full disk, as soon as a file whose name contains `name` is opened."""
    if event != "open" or not isinstance(given[0], str | bytes) or not given[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if name in Path(os.fsdecode(given[0])).name:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.RLIM_INFINITY))


def finish(
    corpus: Path, save_dir: Path, *settings: str, processes: int = 1, environment: Mapping[str, str] = NOTHING
) -> str:
    """Trains until the run is complete. Returns its output."""
    run = Run(corpus, save_dir, *settings, processes=processes, environment=environment)
    assert run.wait() == 0, run.printed
    return run.printed


def logged(save_dir: Path) -> list[dict[str, Any]]:
    """Returns all complete lines of the log."""
    path = save_dir / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def wait_for_update(run: Run, update: int) -> None:
    """Waits until the log contains this update."""
    wait_until(
        lambda: any(line["update"] >= update for line in logged(run.save_dir)),
        running=lambda: run.is_running,
        output=lambda: run.printed,
        pause=0.002,
    )


def readable(save_dir: Path) -> bool:
    """Returns True if a run can be resumed: it has no checkpoint yet, or its latest checkpoint is intact."""
    pointer = save_dir / "latest"
    return not pointer.exists() or load_checkpoint(save_dir / pointer.read_text()).state.update > 0


def assert_same_run(one: Path, other: Path, *more: str) -> None:
    """Asserts that weights, optimizer states, best models and logged values are equal, except times.

    Args:
        one, other: The folders of the runs.
        more: Names of additional files of the last checkpoint to compare.
    """
    last = f"update_{UPDATES:08d}"
    for name in (f"{last}/model", f"{last}/optimizer", "best", *(f"{last}/{name}" for name in more)):
        tensors, others = (load_file(path / f"{name}.safetensors") for path in (one, other))
        assert tensors.keys() == others.keys()
        assert [key for key, tensor in tensors.items() if not torch.equal(tensor, others[key])] == []
    lines, other_lines = (
        [{key: value for key, value in line.items() if key not in TIMES} for line in logged(path)]
        for path in (one, other)
    )
    assert lines == other_lines
    assert [line["update"] for line in lines if line["kind"] == "train"] == list(range(1, UPDATES + 1))
