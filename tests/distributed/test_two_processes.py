"""Training with two gloo processes equals training in one process, and both processes end together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqtk.checkpoint import model_file
from tests.unit.training.helpers import losses
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "device=cpu",
    "threads=1",
    "max_updates=12",
    "batch.max_tokens=400",
    "model.dim=16",
    "model.ffn_dim=32",
    "model.encoder.layers=1",
    "model.decoder.layers=1",
    "model.dropout=0",
    "model.heads=2",
    "schedule.warmup_updates=4",
    "optimizer.lr=0.01",
    "checkpoint.every=3",
    "validation.every=6",
    "log.every=1",
    "log.tensorboard=false",
]


def start(processes: int, corpus: Path, save_dir: Path, *extra: str) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "seqtk.cli.train"]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher = [sys.executable, "-m", *torchrun, "-m", "seqtk.cli.train"]
    command = [*launcher, f"task.data={corpus}", f"save_dir={save_dir}", *ARGUMENTS, *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def train(processes: int, corpus: Path, save_dir: Path, *extra: str) -> tuple[int, str]:
    process = start(processes, corpus, save_dir, *extra)
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


PENALTY = "attention={kind:feedforward_kernel,orthogonality:10}"
"""An attention layer that adds a penalty to the loss."""


@pytest.mark.parametrize("settings", ["parallel=ddp", "parallel=fsdp2", "batch.max_tokens=100000"])
def test_dry_run_ends_and_writes_no_file(tiny_corpus: Path, tmp_path: Path, settings: str) -> None:
    save_dir = tmp_path / "run"
    code, errors = train(2, tiny_corpus, save_dir, settings, "dry_run=true")
    assert code == 0, errors
    assert not save_dir.exists()


@pytest.mark.parametrize(
    "choice",
    [
        "optimizer=adam",
        "optimizer=nag",
        "optimizer=adafactor",
        "optimizer=muon",
        PENALTY,
        "freeze=encoder",
        "layer_decay=0.5",
        "ema.decay=0.9",
        "batch.shapes=4",
    ],
)
def test_losses_equal_the_losses_of_one_process(tiny_corpus: Path, tmp_path: Path, choice: str) -> None:
    chosen = (choice, "optimizer.lr=0.01")
    code, errors = train(1, tiny_corpus, tmp_path / "one", "update_freq=2", *chosen)
    assert code == 0, errors
    code, errors = train(2, tiny_corpus, tmp_path / "two", *chosen)
    assert code == 0, errors
    for kind in ("train", "valid"):
        one, two = losses(tmp_path / "one", kind), losses(tmp_path / "two", kind)
        assert [update for update, _ in one] == [update for update, _ in two]
        # The order of float32 sums differs, which changes an update by 1e-7. Twelve updates do not amplify it.
        assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-6)


REMAINING_THREADS = """
import sys
from pathlib import Path

from seqtk.cli.train import main

main(sys.argv[1:])
names = [thread.joinpath("comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
sys.exit(f"threads remain: {names}" if any("gloo_runloop" in name for name in names) else 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are read from /proc")
@pytest.mark.parametrize("settings", ["parallel=ddp", "parallel=fsdp2", "parallel=fsdp2 dry_run=true"])
def test_gloo_threads_end_with_the_run(tiny_corpus: Path, tmp_path: Path, settings: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(REMAINING_THREADS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run_settings = [f"task.data={tiny_corpus}", f"save_dir={tmp_path / 'run'}", *ARGUMENTS, *settings.split()]
    run = subprocess.run([*launcher, *run_settings], text=True, capture_output=True, timeout=PATIENCE)
    assert run.returncode == 0, run.stderr


BY_HAND = """
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from seqtk.training.ddp import DDP
from seqtk.training.parallel import EngineConfig, engines


@dataclass(frozen=True)
class ByHandConfig(EngineConfig):
    pass


@engines.register("by_hand", ByHandConfig)
class ByHand(DDP):
    def wrap(self, step):
        return step

    @contextmanager
    def gradient_sync(self, wrapped, *, enabled):
        yield
        for parameter in wrapped.parameters() if enabled else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.size
"""


def test_losses_of_a_plugin_engine_equal_ddp(tiny_corpus: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "by_hand.py"
    plugin.write_text(BY_HAND)
    code, errors = train(2, tiny_corpus, tmp_path / "ddp", "update_freq=2", "clip_norm=0.3", "parallel=ddp")
    assert code == 0, errors
    chosen = ("update_freq=2", "clip_norm=0.3", "parallel=by_hand", f"user_dir={plugin}")
    code, errors = train(2, tiny_corpus, tmp_path / "by_hand", *chosen)
    assert code == 0, errors
    ddp, by_hand = losses(tmp_path / "ddp"), losses(tmp_path / "by_hand")
    assert [loss for _, loss in by_hand] == pytest.approx([loss for _, loss in ddp], rel=1e-6)


def test_run_of_two_processes_resumes_in_one_process(tiny_corpus: Path, tmp_path: Path) -> None:
    code, errors = train(1, tiny_corpus, tmp_path / "whole", "update_freq=2")
    assert code == 0, errors
    code, errors = train(2, tiny_corpus, tmp_path / "parts", "max_updates=7")
    assert code == 0, errors
    code, errors = train(1, tiny_corpus, tmp_path / "parts", "update_freq=2")
    assert code == 0, errors
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert [loss for _, loss in parts] == pytest.approx([loss for _, loss in whole], rel=1e-6)


def test_exit_of_one_process_ends_the_run(tiny_corpus: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "dies.py"
    plugin.write_text(
        "import os, threading\nif os.environ.get('RANK') == '1':\n    threading.Timer(8, os._exit, [9]).start()\n"
    )
    code, _ = train(2, tiny_corpus, tmp_path / "run", f"user_dir={tmp_path / 'dies'}", "max_updates=1000000")
    assert code != 0
    if (tmp_path / "run" / "latest").is_file():
        assert model_file.read(tmp_path / "run").tensors


def test_run_stopped_by_sigterm_resumes(tiny_corpus: Path, tmp_path: Path) -> None:
    process = start(
        2, tiny_corpus, tmp_path, "max_updates=100000", "validation.every=100000", "checkpoint.every=100000"
    )
    log = tmp_path / "log.jsonl"
    wait_until(
        lambda: log.is_file() and log.read_text().count("\n") > 3,
        running=lambda: process.poll() is None,
        output=lambda: process.communicate()[1],
    )
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    update = int((tmp_path / "latest").read_text().removeprefix("update_"))
    assert update > 3, errors
    code, errors = train(2, tiny_corpus, tmp_path, f"max_updates={update + 2}")
    assert code == 0, errors
    assert f"Resuming from update {update}" in errors


def test_user_errors_print_no_traceback_of_seqtk(tiny_corpus: Path, tmp_path: Path) -> None:
    """torchrun prints its own traceback. The processes print only the message of the error."""
    code, errors = train(2, tiny_corpus, tmp_path / "run", "validation.metric=bleu", "validation.decode=false")
    assert code != 0
    assert "validation.metric=bleu" in errors
    assert f"{Path('seqtk', 'training')}" not in errors
    assert not (tmp_path / "run").exists()


def test_max_hours_ends_all_processes(tiny_corpus: Path, tmp_path: Path) -> None:
    code, errors = train(2, tiny_corpus, tmp_path / "run", "max_hours=1e-9")
    assert code != 0
    assert "Stopped at max_hours=1e-09 after update 1." in errors
    assert (tmp_path / "run" / "latest").read_text().strip() == "update_00000001"


def test_interrupted_validation_is_repeated_on_resuming(tiny_corpus: Path, tmp_path: Path) -> None:
    """Only one process receives the signal. The processes have different numbers of batches."""
    decoded = ("validation.decode=true", "validation.search.max_length_b=5", "batch.max_tokens=100", "max_updates=6")
    plugin = tmp_path / "interrupts.py"
    plugin.write_text(
        "import os, signal\n"
        "from seqtk.tasks.translation import TranslationTask\n"
        "outputs, calls = TranslationTask.outputs, []\n"
        "def once(self, *given):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2 and os.environ.get('RANK') == '1':\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return outputs(self, *given)\n"
        "TranslationTask.outputs = once\n"
    )
    code, errors = train(2, tiny_corpus, tmp_path / "run", f"user_dir={plugin}", *decoded)
    assert code != 0
    assert (
        "Stopped by a signal after update 6. The same command resumes the run, starting with its validation." in errors
    )
    assert (tmp_path / "run" / "latest").read_text() == "update_00000006"
    assert losses(tmp_path / "run", "valid") == []
    code, errors = train(2, tiny_corpus, tmp_path / "run", *decoded)
    assert code == 0, errors
    assert [update for update, _ in losses(tmp_path / "run", "valid")] == [6]
