"""Trains many tiny models with the same processes, so that processes are started only once."""

import contextlib
import os
import socket
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from seqtk.checkpoint.model_file import load_tensors
from seqtk.cli import compose
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import engines
from seqtk.training.trainer import Trainer
from tests.e2e.runs import context

UPDATES = 3
SETTINGS = (
    "device=cpu threads=1 batch.max_sentences=8 model.dim=16 model.ffn_dim=32 model.heads=2 model.dropout=0 "
    "optimizer={kind:sgd,lr:0.1,momentum:0.9} schedule={kind:constant} clip_norm=0.5 log.every=1 log.tensorboard=false "
    f"log.sinks=[jsonl] max_updates={UPDATES}"
).split()
"""Adam is not used, because rounding errors of gradients that should be 0 give steps of full size."""

Case = Sequence[str]
"""The settings of a run."""


def train(cases: Mapping[str, Case], folder: Path, *, engine: str = "none", processes: int = 1, of: int = 1) -> None:
    """Trains each case with one engine, in the folder `folder/NAME`.

    Args:
        cases: Name → settings.
        folder: The folder of the runs.
        engine: The kind of the engine.
        processes: The number of processes.
        of: The number of micro-batches of an update, in total for all processes.
    """
    if processes == 1:
        failed = _train(cases, folder, engine, of)
        assert not failed, failed
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reader, writer = context.Pipe(duplex=False)
    arguments = (cases, folder, engine, of // processes, processes, port, writer)
    started = [context.Process(target=_process, args=(rank, *arguments)) for rank in range(processes)]
    for process in started:
        process.start()
    writer.close()
    failed = ""
    with contextlib.suppress(EOFError):
        while True:
            failed = reader.recv()
    for process in started:
        process.join()
    assert not failed, failed
    assert all(process.exitcode == 0 for process in started), [process.exitcode for process in started]


def enter_world(rank: int, size: int, port: int) -> None:
    """Sets the environment variables that torchrun would set."""
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in world.items()}
    torch.set_num_threads(1)


def _process(
    rank: int, cases: Mapping[str, Case], folder: Path, engine: str, freq: int, size: int, port: int, writer: object
) -> None:
    enter_world(rank, size, port)
    failed = _train(cases, folder, engine, freq)
    if failed:
        writer.send(failed)  # type: ignore[attr-defined]
        os._exit(1)


def _train(cases: Mapping[str, Case], folder: Path, kind: str, freq: int) -> str:
    """Trains each case in this process. Returns the tracebacks of the cases that fail."""
    failed = []
    timeout = {} if kind == "none" else {"timeout": 20.0}
    engine = engines.build(engines.config_type(kind)(**timeout), device="cpu")
    for name, case in cases.items():
        settings = [*SETTINGS, f"update_freq={freq}", *case, f"save_dir={folder / name}"]
        try:
            config = compose.compose(TrainConfig(), [], compose.parse_overrides(settings))
            Trainer(config, engine=engine).fit()
        except Exception:
            failed.append(f"{name} ({' '.join(case)}) with {kind}:\n{traceback.format_exc()}")
    engine.close()
    return "\n".join(failed)


def distance(one: Path, other: Path) -> float:
    """Returns the largest difference between the weights of two runs after the last update."""
    a, b = (weights(path) for path in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


def weights(path: Path) -> dict[str, Tensor]:
    """Returns the weights of a run after the last update."""
    return load_tensors(path / (path / "latest").read_text() / "model.safetensors")[0]
