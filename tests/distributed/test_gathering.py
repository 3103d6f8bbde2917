"""Saving a sharded model needs memory for one full copy in the first process, and for one shard in the others.

Each process copies and writes only its part of the optimizer's state.
"""

import ctypes
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import nn

from seqtk.checkpoint.model_file import Tensors, save_tensors
from seqtk.training.parallel import engines
from tests.distributed.matrix import enter_world
from tests.e2e.runs import context

LAYERS, WIDTH = 24, 2048
COPY = LAYERS * WIDTH * WIDTH * 4 / 2**20
"""The size of the model in MiB."""


@pytest.mark.slow
def test_gathering_uses_memory_for_only_one_copy(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    started = [
        context.Process(target=_gather, args=(rank, port, tmp_path / "model.safetensors", pipes[rank][1]))
        for rank in range(2)
    ]
    for process in started:
        process.start()
    growth = [reader.recv() / COPY for reader, _ in pipes]
    states = [reader.recv() / COPY for reader, _ in pipes]
    for process in started:
        process.join()
    print(f"pieces: {states[0]:.2f} copies in the first process, {states[1]:.2f} in the second")
    assert max(states) < 0.6
    print(f"copies of {COPY:.0f} MiB: {growth[0]:.2f} in the first process, {growth[1]:.2f} in the second")
    assert growth[0] < 1.5
    assert growth[1] < 0.75


def _gather(rank: int, port: int, path: Path, result: Connection) -> None:
    """Gathers and writes a model, then writes its pieces. Sends the peak growth of memory in each step, in MiB."""
    enter_world(rank, 2, port)
    engine = engines.build(engines.config_type("fsdp2")(timeout=60.0), device="cpu")
    model = engine.wrap(nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))))
    weights: Tensors = {name: weight.detach() for name, weight in model.named_parameters()}
    engine.pieces({"a": weights["0.weight"]})  # imports what it needs
    before = _forget_peak()
    tensors = engine.collect(weights, copies=True)
    if engine.is_first:
        assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
        save_tensors(path, tensors)
    result.send(_memory("VmHWM") - before)
    del tensors
    engine.barrier()
    before = _forget_peak()
    engine.pieces(weights, copies=True).write(path.parent)
    result.send(_memory("VmHWM") - before)
    engine.barrier()
    engine.close()


def _forget_peak() -> float:
    """Gives freed memory back to the system, and resets the peak. Returns the memory in use, in MiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
