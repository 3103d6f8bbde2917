"""With `parallel=fsdp2`, each process writes and reads a part of the optimizer's state."""

import json
import shutil
import time
from pathlib import Path

import pytest

from seqtk.checkpoint.model_file import load_tensors
from tests.distributed.matrix import distance
from tests.e2e.runs import Run, finish, readable
from tests.e2e.test_faults import flip_a_bit

pytestmark = pytest.mark.slow

SETTINGS = ("parallel={kind:fsdp2,timeout:20}", "checkpoint.every=3", "validation.every=1000", "max_updates=12")
LATEST = "update_00000012"
SOON = 30
"""Seconds within which all processes end after one has failed."""


@pytest.fixture(scope="module")
def saved(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes with four checkpoints."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    finish(tiny_corpus, folder, *SETTINGS, processes=2)
    return folder


def test_each_process_writes_its_part_of_a_checkpoint(saved: Path) -> None:
    """Each of the two files has half of the optimizer's state, and is not a pickle."""
    assert not [path for path in saved.rglob("*") if ".partial" in path.name]
    names = {"model.safetensors", "optimizer_00000.safetensors", "optimizer_00001.safetensors", "state.json"}
    assert {path.name for path in (saved / LATEST).iterdir()} == names
    json.loads((saved / LATEST / "state.json").read_text())
    weights, one, other = (load_tensors(saved / LATEST / name)[0] for name in sorted(names) if name.endswith("tensors"))
    numbers = [sum(tensor.numel() for tensor in tensors.values()) for tensors in (weights, one, other)]
    steps = len([name for name in one if name.endswith("/step")])
    assert numbers[1] - steps + numbers[2] == 2 * numbers[0]
    assert abs(numbers[1] - numbers[2]) < 0.1 * numbers[1]


def test_damaged_shard_makes_all_processes_fall_back(saved: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """The processes use the newest checkpoint that all of them can read, although each reads only its part."""
    folder = shutil.copytree(saved, tmp_path / "run")
    flip_a_bit(folder / LATEST / "optimizer_00001.safetensors")
    flip_a_bit(folder / "update_00000009" / "optimizer_00000.safetensors")
    (folder / "update_00000006" / "optimizer_00001.safetensors").unlink()
    printed = finish(tiny_corpus, folder, *SETTINGS, processes=2)
    (line,) = (line for line in printed.splitlines() if "Using the checkpoint before it" in line)
    assert "Using the checkpoint before it, update_00000003." in line
    assert [f"update_{update:08d}" in line for update in (12, 9, 6)] == [True] * 3
    assert distance(saved, folder) == 0.0


def test_new_run_falls_back_to_an_older_checkpoint(saved: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "damaged")
    flip_a_bit(folder / LATEST / "optimizer_00001.safetensors")
    start = (f"init_from={folder}", "reset=[]")
    printed = finish(tiny_corpus, tmp_path / "run", *SETTINGS, *start, processes=2)
    assert "Using the checkpoint before it, update_00000009." in printed
    assert distance(saved, tmp_path / "run") == 0.0


FAULTS = {
    "full disk": None,
    "death": """
import os, signal, sys

def fail(event, given):
    if event == "open" and "optimizer_00001" in str(given[0]) and given[2] & os.O_WRONLY:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(fail)
""",
    "error": """
import os, sys

def fail(event, given):
    if event == "open" and "optimizer_00001" in str(given[0]) and given[2] & os.O_WRONLY:
        raise ValueError("broken on purpose")

sys.addaudithook(fail)
""",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_write_in_one_process_ends_all_processes(
    saved: Path, tiny_corpus: Path, tmp_path: Path, fault: str
) -> None:
    """A thread of the first process waits for the failing process. The previous checkpoint stays the newest."""
    folder, plugin = shutil.copytree(saved, tmp_path / "run"), tmp_path / "fails.py"
    longer = [*SETTINGS[:-1], "max_updates=100000"]
    text = FAULTS[fault]
    if text is not None:
        plugin.write_text(text)
        longer.append(f"user_dir={plugin}")
    began = time.monotonic()
    run = Run(tiny_corpus, folder, *longer, processes=2, full_at="optimizer_00001" if text is None else None)
    assert run.wait() != 0
    assert time.monotonic() - began < 2 * SOON, run.printed  # with the start of the run
    lines = [line for line in run.printed.splitlines() if line.startswith("seqtk-train: ")]
    codes = [process.exitcode for process in run.processes]
    if fault == "full disk":
        assert codes == [2, 2], run.printed
        assert len(lines) == 2
        assert all("optimizer_00001.safetensors does not fit on the disk" in line for line in lines), run.printed
    elif fault == "death":
        assert codes == [1, -9], run.printed
        assert "Process 1 has ended" in lines[0], run.printed
    else:
        assert "ValueError: broken on purpose" in run.printed
        assert "Process 1 failed to save a checkpoint." in lines[0], run.printed
        assert run.printed.count("Traceback (most recent call last)") == 1
    assert (folder / "latest").read_text() == LATEST
    assert readable(folder)
    assert not [path for path in folder.rglob("*") if ".partial" in path.name]
