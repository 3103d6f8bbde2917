"""seqtk-average: the selection of checkpoints, and the errors if there are none."""

from pathlib import Path

import pytest

from seqtk.checkpoint import model_file
from seqtk.cli.average import main
from tests.unit.training.helpers import trainer


@pytest.fixture(scope="module")
def run_dir(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    trainer(tiny_corpus, path, checkpoint__every=2, max_updates=6, validation__every=6).fit()
    return path


def test_setting_last_may_exceed_the_checkpoint_count(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"checkpoint={run_dir}", "last=2"])
    assert capsys.readouterr().out.startswith("Mean of 2 checkpoints: update_00000004, update_00000006\n")
    main([f"checkpoint={run_dir}", "last=99"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"last=99, but {run_dir} has only 3 checkpoints."
    assert lines[1].startswith("Mean of 3 checkpoints")


def test_model_file_selects_the_checkpoints_of_its_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"checkpoint={run_dir / 'best.safetensors'}", "last=2"])
    assert capsys.readouterr().out.splitlines()[1] == str(run_dir / "average.safetensors")


def test_name_of_a_run_may_contain_commas(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_dir.with_name("a=1,b=2")  # --multirun gives such names to runs
    run.symlink_to(run_dir)
    main([f"checkpoint={run}", "last=2"])
    assert capsys.readouterr().out.startswith("Mean of 2 checkpoints: update_00000004, update_00000006\n")


def test_checkpoints_newer_than_latest_are_ignored(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latest = (run_dir / "latest").read_text()
    (run_dir / "latest").write_text("update_00000004")
    try:
        main([f"checkpoint={run_dir}"])
    finally:
        (run_dir / "latest").write_text(latest)
    assert "Mean of 2 checkpoints: update_00000002, update_00000004" in capsys.readouterr().out
    assert model_file.read(run_dir / "average.safetensors").info["averaged"] == [2, 4]


@pytest.mark.parametrize(("name", "words"), [("emty", "does not exist"), ("empty", "no checkpoints")])
def test_missing_and_empty_folders_have_different_errors(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main([f"checkpoint={tmp_path / name}"])
    error = capsys.readouterr().err
    assert words in error
    assert "checkpoint=" in error
