"""A dry run describes a run, measures one update, and writes no file."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seqtk.training.dry_run import dry_run
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import tiny_config, trainer
from tests.waiting import PATIENCE


def described(corpus: Path, save_dir: Path, **changes: Any) -> str:
    return "\n".join(dry_run(tiny_config(corpus, save_dir, **changes)))


def test_dry_run_writes_no_file(tiny_corpus: Path, tmp_path: Path) -> None:
    described(tiny_corpus, tmp_path / "deep" / "run")
    assert not list(tmp_path.iterdir())


def test_dry_run_yields_lines_before_it_ends(tiny_corpus: Path, tmp_path: Path) -> None:
    lines = dry_run(tiny_config(tiny_corpus, tmp_path / "run"))
    assert "parameters on" in next(lines)
    assert any("An update with this batch took" in line for line in lines)


def test_sigterm_ends_a_long_native_computation() -> None:
    code = (
        "import signal\nfrom seqtk.cli.command import handling_sigterm, reporting_errors\n"
        "with reporting_errors(''), handling_sigterm(signal.SIG_DFL):\n print(1, flush=True)\n sum(range(10**11))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        process.terminate()
        assert process.wait(timeout=PATIENCE) == -signal.SIGTERM


def test_dry_run_does_not_change_an_existing_run(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=3).fit()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "Resuming from update 3" in described(tiny_corpus, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_sums_of_earlier_updates_are_not_included(tiny_corpus: Path, tmp_path: Path) -> None:
    found = set()
    for log_every in (1, 100):
        save_dir, changes = tmp_path / f"{log_every}", {"log__every": log_every, "max_updates": 6}
        trainer(tiny_corpus, save_dir, **changes).fit()
        (save_dir / "latest").write_text("update_00000003")
        found.add(described(tiny_corpus, save_dir, **changes).partition(" s: loss ")[2].splitlines()[0])
    assert len(found) == 1


def test_dry_run_skips_an_epoch_without_usable_examples(tiny_corpus: Path, tmp_path: Path) -> None:
    updates = len(trainer(tiny_corpus, tmp_path).plan()) - 1
    run = trainer(tiny_corpus, tmp_path, max_updates=updates)
    run.fit()
    longest_N = run.train_set.sizes_ND.max(axis=1)
    left = run.plan()[0].indices[0]
    assert left is not None
    limit = int(longest_N[left].min()) - 1
    assert limit >= longest_N.min()
    assert "end of epoch 2" in described(tiny_corpus, tmp_path, max_updates=updates + 2, batch__max_length=limit)


def test_dry_run_lists_frozen_and_scaled_modules(tiny_corpus: Path, tmp_path: Path) -> None:
    changes = {"freeze": ["encoder"], "lr_scales": [{"name": "decoder", "scale": 0.25}]}
    lines = described(tiny_corpus, tmp_path / "run", **changes).splitlines()
    shown = {line.split()[0]: line.split()[-1] for line in lines if line.startswith("  ")}
    assert shown["encoder.blocks.*.feed_forward"] == "frozen"
    assert shown["decoder.blocks.*.feed_forward"] == "0.25"


def test_dry_run_lists_memory_by_purpose(tiny_corpus: Path, tmp_path: Path) -> None:
    text = described(tiny_corpus, tmp_path / "run", ema__decay=0.9)
    for name in ("weights", "gradients", "optimizer state", "average of the weights", "saved for the backward pass"):
        assert f"\n  {name} " in text


@pytest.mark.parametrize("kind", ["adam", "adafactor", "muon"])
def test_dry_run_counts_the_state_of_each_optimizer(tiny_corpus: Path, tmp_path: Path, kind: str) -> None:
    assert "optimizer state" in described(tiny_corpus, tmp_path / "run", optimizer={"kind": kind})


def test_too_long_examples_are_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_source_length"):
        described(tiny_corpus, tmp_path / "run", model__max_source_length=3)
    assert not list(tmp_path.iterdir())
