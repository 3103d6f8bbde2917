"""Resuming is bit-exact in every combination of settings, and reads every example once if batch settings change."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint.model_file import load_tensors
from tests.e2e.runs import UPDATES, Run, assert_same_run, finish, logged, wait_for_update
from tests.unit.training.helpers import trainer

pytestmark = pytest.mark.slow

PLUGIN = """
import os
from seqtk.training.parallel import TrainStep

forward = TrainStep.forward

def noting(self, batch, state=None):
    if self.training and batch.weight:
        with open(os.environ["SEEN"], "a") as file:
            print(batch.ids_B.tolist(), file=file)
    return forward(self, batch, state)

TrainStep.forward = noting
"""
COMBINATIONS = list(itertools.product([1, 2], [0, 2], [1, 3]))
if "SEQTK_KILLS" not in os.environ:
    COMBINATIONS = [(1, 0, 3), (2, 2, 1)]  # make test-faults tests all combinations


@pytest.mark.parametrize(("processes", "workers", "update_freq"), COMBINATIONS)
def test_run_killed_twice_resumes_bit_exactly(
    tiny_corpus: Path, tmp_path: Path, processes: int, workers: int, update_freq: int
) -> None:
    """The kills are within an epoch of two corpora, with patience, averaged weights, and float16 in half the cases."""
    settings = [
        f"task.mix=[{{data:{tiny_corpus},weight:0.7}},{{data:{tiny_corpus},weight:0.8}}]",
        f"batch.workers={workers}",
        f"update_freq={update_freq}",
        "validation.patience=9",
        "ema.decay=0.9",
        f"precision={'fp16' if workers else 'fp32'}",
        "checkpoint.every=7",
    ]
    finish(tiny_corpus, tmp_path / "whole", *settings, processes=processes)
    for update in (10, 43):
        run = Run(tiny_corpus, tmp_path / "parts", *settings, processes=processes)
        wait_for_update(run, update)
        run.kill(*range(processes))
    newest = tmp_path / "parts" / (tmp_path / "parts" / "latest").read_text()
    assert json.loads((newest / "state.json").read_text())["position"]["examples"] > 0
    finish(tiny_corpus, tmp_path / "parts", *settings, processes=processes)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", "ema")


def test_different_process_count_reads_each_example_once(tiny_corpus: Path, tmp_path: Path) -> None:
    """An epoch reads all examples of one corpus and half the examples of another, whose ids start at 300."""
    (tmp_path / "notes.py").write_text(PLUGIN.replace("\\\\\\\\", "\\\\"))
    mix = f"task.mix=[{{data:{tiny_corpus}}},{{data:{tiny_corpus},weight:0.5}}]"
    settings = [f"user_dir={tmp_path / 'notes.py'}", "max_epochs=1", mix]
    for processes, update_freq, tokens, end in ((2, 1, 400, 4), (1, 3, 400, 6), (2, 2, 250, 9), (1, 2, 600, 0)):
        finish(
            tiny_corpus,
            tmp_path / "run",
            *settings,
            f"max_updates={end}",
            f"update_freq={update_freq}",
            f"batch.max_tokens={tokens}",
            processes=processes,
            environment={"SEEN": str(tmp_path / "seen")},
        )
    seen = [index for line in (tmp_path / "seen").read_text().splitlines() for index in json.loads(line)]
    assert sorted(index for index in seen if index < 300) == list(range(300))
    halves = [index for index in seen if index >= 300]
    assert len(set(halves)) == len(halves) == 150
    assert logged(tmp_path / "run")[-1]["update"] < UPDATES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["step", "blocks"])
def test_compiled_run_resumes_bit_exactly(tiny_corpus: Path, tmp_path: Path, mode: str) -> None:
    """The run stops within an epoch of two corpora, with accumulation, patience and averaged weights, in bfloat16.

    Graphs are traced and differentiated. No code is generated, because that would take minutes.
    """
    settings: dict[str, Any] = {
        "compile": mode,
        "batch__shapes": 1,
        "task__mix": [{"data": str(tiny_corpus), "weight": 0.7}, {"data": str(tiny_corpus), "weight": 0.8}],
        "update_freq": 3,
        "validation__patience": 9,
        "validation__every": 2,
        "ema": {"decay": 0.9},
        "precision": "bf16",
    }
    for name, ends in (("whole", (6,)), ("parts", (3, 6))):
        for end in ends:
            torch.compiler.reset()
            with torch.compiler.set_stance(force_backend="aot_eager"):
                run = trainer(tiny_corpus, tmp_path / name, max_updates=end, **settings)
                assert run.fit().update == end
                assert run.compilation is not None
                assert run.compilation.graphs > 0
    for name in ("model", "optimizer", "ema"):
        whole, parts = (
            load_tensors(tmp_path / each / "update_00000006" / f"{name}.safetensors")[0] for each in ("whole", "parts")
        )
        assert [key for key, tensor in whole.items() if not torch.equal(tensor, parts[key])] == []
