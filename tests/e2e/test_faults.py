"""After any interruption, the same command resumes the run, and the final weights equal those of an uninterrupted run.

`make test-faults` runs these tests with 200 kills for each number of processes, and prints the numbers of kills.
"""

import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.runs import UPDATES, Run, assert_same_run, finish, logged, readable, wait_for_update

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SEQTK_KILLS", "0"))
"""The number of kills for each number of processes. 0: as many as fit into QUICK seconds."""
QUICK = 15
"""The seconds in which a quick test kills runs."""
IN_A_THREAD = "in a thread"
FILES = [
    "log.jsonl",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "latest",
    "best.safetensors",
    "best_loss",
    "tfevents",
    f"model.safetensors {IN_A_THREAD}",
    f"best.safetensors {IN_A_THREAD}",
]


class Whole:
    """An uninterrupted run and its duration in seconds."""

    def __init__(self, corpus: Path, save_dir: Path, processes: int) -> None:
        began = time.monotonic()
        finish(corpus, save_dir, processes=processes)
        self.save_dir, self.seconds = save_dir, time.monotonic() - began


@pytest.fixture(scope="module")
def whole(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    finish(tiny_corpus, tmp_path_factory.mktemp("first") / "run", "max_updates=1")  # starts the server
    return Whole(tiny_corpus, tmp_path_factory.mktemp("whole") / "run", 1)


@pytest.fixture(scope="module")
def whole_of_two(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tiny_corpus, tmp_path_factory.mktemp("whole_of_two") / "run", 2)


class TestKills:
    def test_one_process_killed_at_random_resumes_exactly(
        self, whole: Whole, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        counts = self.kill_often(whole, tiny_corpus, tmp_path, processes=1, kills=KILLS or 12, capsys=capsys)
        assert min(counts["kills"], counts["runs ended"]) >= 1

    def test_two_processes_killed_at_random_resume_exactly(
        self, whole_of_two: Whole, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        counts = self.kill_often(whole_of_two, tiny_corpus, tmp_path, processes=2, kills=KILLS or 4, capsys=capsys)
        assert min(counts["kills"], counts["runs ended"]) >= 1

    def kill_often(
        self,
        whole: Whole,
        corpus: Path,
        folder: Path,
        *,
        processes: int,
        kills: int,
        capsys: pytest.CaptureFixture[str],
    ) -> "Counter[str]":
        """Kills a run repeatedly at random moments, and starts a new run when one is complete.

        Asserts that each killed run can be resumed, and that each complete run equals `whole`. Returns the counts of
        kills and of complete runs.
        """
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        moments, counts = random.Random(seed), Counter[str]()
        save_dir = folder / "run"
        end = time.monotonic() + (math.inf if KILLS else QUICK)
        while counts["kills"] < kills and (time.monotonic() < end or not counts["kills"]):
            run = Run(corpus, save_dir, processes=processes)
            time.sleep(moments.uniform(0, whole.seconds))
            if run.is_running:
                ranks = moments.choice([[0], [1], [0, 1]]) if processes > 1 else [0]
                run.kill(*ranks)
                counts["kills"] += 1
                counts["before the first checkpoint"] += not (save_dir / "latest").exists()
                assert readable(save_dir)
            else:
                assert run.wait() == 0, run.printed
                self.compare(whole, save_dir, counts)
        finish(corpus, save_dir, processes=processes)
        self.compare(whole, save_dir, counts)
        with capsys.disabled():
            print(f"\n{processes} process(es): {dict(counts)}, all runs readable and bit-equal")
        return counts

    def compare(self, whole: Whole, save_dir: Path, counts: "Counter[str]") -> None:
        assert_same_run(whole.save_dir, save_dir)
        assert not [path for path in save_dir.rglob("*") if ".partial" in path.name]
        shutil.rmtree(save_dir)
        counts["runs ended"] += 1


@pytest.mark.parametrize("name", FILES)
def test_run_with_a_full_disk_fails_and_resumes(whole: Whole, tiny_corpus: Path, tmp_path: Path, name: str) -> None:
    save_dir = tmp_path / "run"
    # A limit on file sizes simulates the full disk. It applies to all files that the process writes at that time.
    name, _, how = name.partition(" ")
    settings = (
        "checkpoint.keep_best=2",
        f"log.tensorboard={name == 'tfevents'}".lower(),  # its thread may write while another file is limited
        f"checkpoint.asynchronous={how == IN_A_THREAD}".lower(),
    )
    run = Run(tiny_corpus, save_dir, *settings)
    wait_for_update(run, 15)
    run.kill(0)
    run = Run(tiny_corpus, save_dir, *settings, full_at=name)
    assert run.wait() == 2, run.printed
    lines = [line for line in run.printed.splitlines() if line.startswith("seqtk-train: ")]
    assert len(lines) == 1, run.printed
    assert (name if how != IN_A_THREAD else "does not fit on the disk") in lines[0].replace(str(save_dir), "")
    assert "Traceback" not in run.printed
    assert readable(save_dir)
    assert not [path for path in save_dir.rglob("*") if ".partial" in path.name]
    finish(tiny_corpus, save_dir, *settings)
    assert_same_run(whole.save_dir, save_dir)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped_bit": flip_a_bit,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_run_skips_a_damaged_checkpoint(whole: Whole, tiny_corpus: Path, tmp_path: Path, how: str) -> None:
    save_dir = tmp_path / "run"
    run = Run(tiny_corpus, save_dir)
    wait_for_update(run, 35)
    run.kill(0)
    newest = save_dir / (save_dir / "latest").read_text()
    DAMAGE[how](newest / "optimizer.safetensors")
    printed = finish(tiny_corpus, save_dir)
    (line,) = (line for line in printed.splitlines() if "Using the checkpoint before it" in line)
    assert newest.name in line
    assert_same_run(whole.save_dir, save_dir)


@pytest.mark.parametrize("workers", [0, 1])
def test_run_resumes_after_its_data_were_missing(whole: Whole, tiny_corpus: Path, tmp_path: Path, workers: int) -> None:
    """The run ends when it opens the missing file again. After the file is restored, the run resumes."""
    corpus, save_dir = shutil.copytree(tiny_corpus, tmp_path / "corpus"), tmp_path / "run"
    run = Run(corpus, save_dir, f"batch.workers={workers}")
    wait_for_update(run, 5)
    gone = corpus / "train.en-de.de.bin"
    gone.rename(tmp_path / "gone")
    code = run.wait()
    if code:
        assert code == 2, run.printed
        assert "Traceback" not in run.printed
        assert f"There is no file {gone}.\n" in run.printed
        assert "Copy the file again" in run.printed
    shutil.move(tmp_path / "gone", gone)
    finish(corpus, save_dir, f"batch.workers={workers}")
    assert_same_run(whole.save_dir, save_dir)


@pytest.mark.parametrize("workers", [0, 1])
def test_run_with_truncated_data_fails_and_resumes(
    whole: Whole, tiny_corpus: Path, tmp_path: Path, workers: int
) -> None:
    """A file that is truncated while it is open ends the run with exit code 2, not with SIGBUS."""
    corpus, save_dir = shutil.copytree(tiny_corpus, tmp_path / "corpus"), tmp_path / "run"
    run = Run(corpus, save_dir, f"batch.workers={workers}", "max_updates=5000")
    wait_for_update(run, 15)
    cut = corpus / "train.en-de.de.bin"
    content = cut.read_bytes()
    os.truncate(cut, 10)
    assert run.wait() == 2, run.printed
    assert f"{cut} has become shorter" in run.printed or f"{cut} has 10 bytes" in run.printed
    assert "Traceback" not in run.printed
    cut.write_bytes(content)
    finish(corpus, save_dir, f"batch.workers={workers}")
    assert (save_dir / "latest").exists()


def test_read_only_folder_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    run = Run(tiny_corpus, tmp_path / "run", "save_dir=/proc/run")
    assert run.wait() == 2
    assert run.printed.startswith("seqtk-train: save_dir=/proc/run cannot be written.")
    assert run.printed.count("\n") <= 3


def test_second_run_in_a_folder_is_refused(whole: Whole, tiny_corpus: Path, tmp_path: Path) -> None:
    first = Run(tiny_corpus, tmp_path / "run")
    wait_for_update(first, 2)
    second = Run(tiny_corpus, tmp_path / "other", f"save_dir={tmp_path / 'run'}")
    assert second.wait() == 2
    assert "Another run is writing" in second.printed
    assert first.wait() == 0
    assert_same_run(whole.save_dir, tmp_path / "run")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_signal_saves_a_checkpoint(whole: Whole, tiny_corpus: Path, tmp_path: Path, name: str, code: int) -> None:
    run = Run(tiny_corpus, tmp_path / "run")
    wait_for_update(run, 5)
    os.kill(run.processes[0].pid or 0, getattr(signal, name))
    assert run.wait() == code, run.printed
    newest = int((tmp_path / "run" / "latest").read_text().removeprefix("update_"))
    assert newest == logged(tmp_path / "run")[-1]["update"] < UPDATES
    finish(tiny_corpus, tmp_path / "run")
    assert_same_run(whole.save_dir, tmp_path / "run")
