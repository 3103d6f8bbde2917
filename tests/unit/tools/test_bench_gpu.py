"""The GPU benchmark, tested on the CPU with tiny sizes (`--rehearse`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
TRAINED = ("translation_base", "translation_big", "lm_44m", "lm_124m", "synth_dense", "synth_random", "synth_mixture")
LOOPS = ("plain", "plain, compiled", "seqtk, compile=off", "seqtk, compile=step")
WITHOUT_HYDRA = """
import runpy, sys
sys.modules["hydra"] = sys.modules["omegaconf"] = None
sys.path.insert(0, "tools")
sys.argv = ["bench_gpu.py", *sys.argv[1:]]
runpy.run_path("tools/bench_gpu.py", run_name="__main__")
"""


def rehearse(out: Path, *more: str, code: int = 0) -> str:
    """Runs the benchmark with `--rehearse` and without Hydra, and returns its output."""
    command = [sys.executable, "-c", WITHOUT_HYDRA, "--rehearse", "--minutes", "60", "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rehearsal")
    rehearse(out)
    return out


@pytest.mark.slow
class TestRehearsal:
    def test_every_part_has_results_for_every_loop(self, rehearsed: Path) -> None:
        for name in TRAINED:
            rows = json.loads((rehearsed / f"{name}.json").read_text())["rows"]
            assert tuple(rows) == LOOPS
            for row in rows.values():
                assert row.pop("card") == "CPU"
                assert len(row) == 6
                assert all(value > 0 for value in row.values())
        decoding = json.loads((rehearsed / "decoding.json").read_text())["rows"][""]
        assert decoding["sentences/s"] > 0
        laws = json.loads((rehearsed / "laws.json").read_text())["rows"][""]
        assert laws["passed"] > 0 == laws["failed"]

    def test_table_has_every_part(self, rehearsed: Path) -> None:
        lines = (rehearsed / "table.md").read_text().splitlines()
        first = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
        assert first == ["part", "laws", *(f"{name}: {loop}" for name in TRAINED for loop in LOOPS), "decoding"]

    def test_only_missing_and_failed_parts_run_again(self, rehearsed: Path) -> None:
        (rehearsed / "decoding.json").unlink()
        path = rehearsed / "laws.json"
        tree = json.loads(path.read_text())
        tree["rows"][""]["failure"] = "killed"
        path.write_text(json.dumps(tree))
        printed = rehearse(rehearsed)
        assert "laws …" in printed
        assert "decoding …" in printed
        assert printed.count("already measured") == len(TRAINED)
        assert "killed" not in (rehearsed / "table.md").read_text()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_benchmark_without_a_gpu_writes_no_file(self, tmp_path: Path) -> None:
        command = [sys.executable, "tools/bench_gpu.py", "--out", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert not (tmp_path / "out").exists()

    def test_no_part_starts_after_the_time_limit(self, tmp_path: Path) -> None:
        rehearse(tmp_path, "--minutes", "0", code=1)
        assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_kernel_launches_and_waiting_time_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from bench_gpu import launches_and_busy

    events = [
        *[(name, 1e5) for name in ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaLaunchKernelExC", "cudaGraphLaunch")],
        *[(name, 1e5) for name in ("aten::mm", "cudaMemcpyAsync", "cutlass::Kernel2<sm90>", "cudaEventRecord")],
        *[("cudaDeviceSynchronize", 3e5), ("cudaStreamSynchronize", 2e5)],
    ]
    assert launches_and_busy(events, 2.0, "cuda") == (4, 0.75)
