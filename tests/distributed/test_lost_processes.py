"""If a process fails, dies or hangs, or if torchrun is killed, all processes of the run end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqtk.checkpoint import model_file
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

PLUGIN = """
import os, signal, time
from seqtk.tasks.translation import TranslationTask

collate, calls = TranslationTask.collate, []

def failing(self, *given):
    calls.append(1)
    if len(calls) == 6 and os.environ["RANK"] == os.environ["BAD_RANK"]:
        if os.environ["FAULT"] == "raises":
            raise ValueError("broken on purpose")
        if os.environ["FAULT"] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["FAULT"] == "hangs":
            time.sleep(1000)
    return collate(self, *given)

TranslationTask.collate = failing
"""
ARGUMENTS = (
    "device=cpu threads=1 max_updates=100000 batch.max_tokens=400 model.dim=16 model.ffn_dim=32 model.heads=2 "
    "model.encoder.layers=1 model.decoder.layers=1 schedule.warmup_updates=4 checkpoint.every=100000 "
    "validation.every=100000 log.every=1 log.tensorboard=false parallel={kind:ddp,timeout:5}"
)

SOON = 120
"""Maximum number of seconds until all processes end. torchrun stops a process within 30 s, or later if busy."""


class Launched:
    """Two processes under torchrun."""

    def __init__(self, corpus: Path, folder: Path, *, fault: str = "", rank: int = 0) -> None:
        self.save_dir, self.output = folder / "run", folder / "output"
        plugin = folder / "plugin.py"
        plugin.write_text(PLUGIN)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        settings = [f"task.data={corpus}", f"save_dir={self.save_dir}", f"user_dir={plugin}", *ARGUMENTS.split()]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*torchrun, "-m", "seqtk.cli.train", *settings],
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault, "BAD_RANK": str(rank)},
            )

    @property
    def updates(self) -> int:
        log = self.save_dir / "log.jsonl"
        return log.read_text().count("\n") if log.is_file() else 0

    @property
    def workers(self) -> list[int]:
        """The ids of the processes that torchrun started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in children.read_text().split()]

    def wait_for_updates(self, count: int) -> None:
        wait_until(
            lambda: self.updates >= count,
            running=lambda: self.process.poll() is None,
            output=self.output.read_text,
        )


@pytest.fixture
def launched(request: pytest.FixtureRequest, tiny_corpus: Path, tmp_path: Path) -> Iterator[Launched]:
    run = Launched(tiny_corpus, tmp_path, **getattr(request, "param", {}))
    yield run
    run.process.kill()
    run.process.wait()


@pytest.mark.parametrize(
    "launched", [{"fault": "raises", "rank": rank} for rank in (0, 1)], indirect=True, ids=["rank0", "rank1"]
)
def test_traceback_of_the_failed_process_is_printed_last(launched: Launched) -> None:
    launched.wait_for_updates(1)
    assert launched.process.wait(timeout=SOON) != 0
    printed = launched.output.read_text()
    last = [line for line in printed.splitlines() if "Error: " in line][-1]
    assert last.strip() == "ValueError: broken on purpose"
    # One traceback is printed by the process, one by torchrun, and one in torchrun's report.
    assert printed.count("Traceback (most recent call last)") == 3


@pytest.mark.parametrize(
    "launched", [{"fault": "dies", "rank": rank} for rank in (0, 1)], indirect=True, ids=["rank0", "rank1"]
)
def test_killed_process_ends_the_other_process(launched: Launched) -> None:
    launched.wait_for_updates(1)
    assert launched.process.wait(timeout=SOON) != 0
    assert "SIGKILL" in launched.output.read_text()


@pytest.mark.parametrize("launched", [{"fault": "hangs", "rank": 1}], indirect=True, ids=["rank1"])
def test_hanging_process_is_named_in_the_error(launched: Launched) -> None:
    launched.wait_for_updates(1)
    assert launched.process.wait(timeout=SOON) != 0
    assert "Process 1 did not respond to process 0 within parallel.timeout=5" in launched.output.read_text()


def test_processes_end_after_torchrun_is_killed(launched: Launched) -> None:
    launched.wait_for_updates(3)
    workers = launched.workers
    assert len(workers) == 2
    launched.process.kill()
    launched.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers))
    newest = (launched.save_dir / "latest").read_text()
    assert json.loads((launched.save_dir / newest / "state.json").read_text())["update"] >= 3
    assert model_file.read(launched.save_dir / newest).tensors


def test_sigterm_to_torchrun_saves_a_checkpoint(launched: Launched) -> None:
    launched.wait_for_updates(3)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.process.wait(timeout=SOON) != 0
    assert (launched.save_dir / "latest").is_file(), launched.output.read_text()
