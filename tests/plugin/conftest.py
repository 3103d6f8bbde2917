"""Runs commands with the plug-in package in new processes, so that the registries of this process do not change."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "retlab"
TRAIN = (
    "device=cpu threads=1 model.dim=16 model.ffn_dim=32 model.heads=2 model.encoder.layers=1 optimizer.lr=0.01 "
    "schedule.warmup_updates=2 batch.max_tokens=400 max_updates=4 validation.every=2 log.every=1 log.tensorboard=false "
    "checkpoint.keep_best=1"
)
Command = Callable[..., str]


def command(name: str, *arguments: str, processes: int = 1) -> str:
    """Runs a command of seqtk and returns its output. Raises AssertionError with the standard error if it fails."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
    done = subprocess.run(
        [*launcher, f"seqtk.cli.{name}", *arguments, f"user_dir={PLUGIN}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def logged(save_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the lines of one kind, such as `train`, in the log.jsonl of a run."""
    lines = map(json.loads, (save_dir / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that trains a tiny model and returns the folder of the run."""

    def train(*arguments: str, folder: Path | None = None, processes: int = 1) -> Path:
        save_dir = folder or tmp_path_factory.mktemp("run")
        command("train", *TRAIN.split(), *arguments, f"save_dir={save_dir}", processes=processes)
        return save_dir

    return train
