"""Two gloo processes make the run that one makes, and end together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqtk.checkpoint import model_file
from tests.unit.training.helpers import losses

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
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


PENALTY = "attention={kind:feedforward_kernel,orthogonality:10}"
"""Added to the loss of the tokens by the layer itself."""


@pytest.mark.parametrize(
    "choice", ["optimizer=adam", "optimizer=nag", "optimizer=adafactor", "optimizer=muon", PENALTY]
)
def test_two_processes_have_the_losses_of_one(tiny_corpus: Path, tmp_path: Path, choice: str) -> None:
    chosen = (choice, "optimizer.lr=0.01")
    code, errors = train(1, tiny_corpus, tmp_path / "one", "update_freq=2", *chosen)
    assert code == 0, errors
    code, errors = train(2, tiny_corpus, tmp_path / "two", *chosen)
    assert code == 0, errors
    for kind in ("train", "valid"):
        one, two = losses(tmp_path / "one", kind), losses(tmp_path / "two", kind)
        assert [update for update, _ in one] == [update for update, _ in two]
        # Nothing but the order of float32 sums differs: 1e-7 an update, which twelve updates are too few to amplify.
        assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-6)


def test_a_run_of_two_goes_on_with_one(tiny_corpus: Path, tmp_path: Path) -> None:
    code, errors = train(1, tiny_corpus, tmp_path / "whole", "update_freq=2")
    assert code == 0, errors
    code, errors = train(2, tiny_corpus, tmp_path / "parts", "max_updates=7")
    assert code == 0, errors
    code, errors = train(1, tiny_corpus, tmp_path / "parts", "update_freq=2")
    assert code == 0, errors
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert [loss for _, loss in parts] == pytest.approx([loss for _, loss in whole], rel=1e-6)


def test_one_dead_process_ends_the_run(tiny_corpus: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "dies.py"
    plugin.write_text(
        "import os, threading\nif os.environ.get('RANK') == '1':\n    threading.Timer(8, os._exit, [9]).start()\n"
    )
    began = time.monotonic()
    code, _ = train(2, tiny_corpus, tmp_path / "run", f"user_dir={tmp_path / 'dies'}", "max_updates=1000000")
    assert code != 0
    assert time.monotonic() - began < 60
    if (tmp_path / "run" / "latest").is_file():
        assert model_file.read(tmp_path / "run").tensors


def test_sigterm_saves_and_resumes_in_two_processes(tiny_corpus: Path, tmp_path: Path) -> None:
    process = start(
        2, tiny_corpus, tmp_path, "max_updates=100000", "validation.every=100000", "checkpoint.every=100000"
    )
    log = tmp_path / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    update = int((tmp_path / "latest").read_text().removeprefix("update_"))
    assert update > 3, errors
    code, errors = train(2, tiny_corpus, tmp_path, f"max_updates={update + 2}")
    assert code == 0, errors
    assert f"Resuming from update {update}" in errors


def test_a_validation_of_two_processes_is_given_up_by_both_and_made_by_the_next(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    """A signal to one of them is enough, were their batches of the split not as many."""
    decoded = ("validation.decode=true", "validation.search.max_length_b=5", "batch.max_tokens=100", "max_updates=6")
    plugin = tmp_path / "interrupts.py"
    plugin.write_text(
        "import os, signal\n"
        "from seqtk.tasks.translation import TranslationTask\n"
        "decode, calls = TranslationTask.decode, []\n"
        "def once(self, *given):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2 and os.environ.get('RANK') == '1':\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return decode(self, *given)\n"
        "TranslationTask.decode = once\n"
    )
    code, errors = train(2, tiny_corpus, tmp_path / "run", f"user_dir={plugin}", *decoded)
    assert code != 0
    assert "Stopped by a signal after update 6. The same command resumes there, starting with its validation." in errors
    assert (tmp_path / "run" / "latest").read_text() == "update_00000006"
    assert losses(tmp_path / "run", "valid") == []
    code, errors = train(2, tiny_corpus, tmp_path / "run", *decoded)
    assert code == 0, errors
    assert [update for update, _ in losses(tmp_path / "run", "valid")] == [6]
