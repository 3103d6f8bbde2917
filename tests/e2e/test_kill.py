"""After a kill, a signal or a full disk, the same command resumes the run bit-exactly."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seqtk.checkpoint import trained_model
from tests.e2e.runs import UPDATES, assert_same_run, logged
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

CHECKPOINT_EVERY = 20
ARGUMENTS = [
    "device=cpu",
    "threads=1",
    f"max_updates={UPDATES}",
    f"checkpoint.every={CHECKPOINT_EVERY}",
    "validation.every=30",
    "log.every=1",
    "log.tensorboard=false",
    "batch.max_tokens=400",
    "model.dim=32",
    "model.ffn_dim=64",
    "model.heads=2",
    "model.encoder.layers=2",
    "model.decoder.layers=2",
    "attention=synthesizer_mixture",
    "attention.max_length=64",
    "attention.dropout=0.1",
    "schedule.warmup_updates=10",
    "optimizer.lr=0.005",
]


def start(corpus: Path, save_dir: Path, *, before: Callable[[], None] | None = None) -> "subprocess.Popen[str]":
    """Starts a training command. All runs have the same settings, except for the folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "seqtk.cli.train", f"task.data={corpus}", f"save_dir={save_dir}", *ARGUMENTS],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=before,
    )


def train(corpus: Path, save_dir: Path) -> str:
    """Trains until the run is complete. Returns its output."""
    process = start(corpus, save_dir)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return errors


def wait_for_update(process: "subprocess.Popen[str]", save_dir: Path, update: int) -> None:
    """Waits until the log contains this update."""
    wait_until(
        lambda: any(line["update"] >= update for line in logged(save_dir)),
        running=lambda: process.poll() is None,
        output=lambda: process.communicate()[1],
        pause=0.002,
    )


def latest(save_dir: Path) -> int:
    """Returns the update of the checkpoint from which the next run resumes."""
    return int((save_dir / "latest").read_text().removeprefix("update_"))


@pytest.fixture(scope="module")
def whole(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of an uninterrupted run."""
    save_dir = tmp_path_factory.mktemp("whole")
    train(tiny_corpus, save_dir)
    return save_dir


def test_run_killed_within_an_epoch_resumes_exactly(whole: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    process = start(tiny_corpus, tmp_path)
    wait_for_update(process, tmp_path, CHECKPOINT_EVERY + 5)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert latest(tmp_path) < logged(tmp_path)[-1]["update"] < UPDATES  # some updates are lost and repeated
    position = json.loads((tmp_path / (tmp_path / "latest").read_text() / "state.json").read_text())["position"]
    assert position["examples"] > 0  # the middle of an epoch
    assert f"Resuming from update {latest(tmp_path)}" in train(tiny_corpus, tmp_path)
    assert_same_run(whole, tmp_path)


def test_run_killed_repeatedly_resumes_exactly(whole: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for update in (1, 2 * CHECKPOINT_EVERY):
        process = start(tiny_corpus, tmp_path)
        wait_for_update(process, tmp_path, update)
        time.sleep(moments.uniform(0, 0.1))  # possibly while a checkpoint is written
        process.kill()
        process.communicate(timeout=PATIENCE)
    train(tiny_corpus, tmp_path)
    assert_same_run(whole, tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_run_stopped_by_ctrl_c_resumes_exactly(whole: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    process = start(tiny_corpus, tmp_path)
    wait_for_update(process, tmp_path, 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("Stopped by a signal after update")
    assert latest(tmp_path) == logged(tmp_path)[-1]["update"]  # nothing is lost
    train(tiny_corpus, tmp_path)
    assert_same_run(whole, tmp_path)


def test_full_disk_keeps_the_previous_checkpoint(whole: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = CHECKPOINT_EVERY
    (tmp_path / "latest").write_text(f"update_{before:08d}")
    for folder in tmp_path.glob("update_*"):
        if folder.name > f"update_{before:08d}":
            shutil.rmtree(folder)
    folder = tmp_path / f"update_{before:08d}"
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    size = len(contents["model.safetensors"]) * 3 // 4
    assert size > 2 * (tmp_path / "log.jsonl").stat().st_size  # only the checkpoint does not fit

    process = start(tiny_corpus, tmp_path, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if line.startswith("seqtk-train: "))
    assert str(tmp_path) in line
    assert "File too large" in line
    assert latest(tmp_path) == before
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
    trained_model.load(folder)
    assert not list(tmp_path.rglob("*.tmp"))
