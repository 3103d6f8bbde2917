"""Which checkpoints seqtk-average takes, and what it says where there are none, or fewer."""

from pathlib import Path

import pytest

from seqtk.checkpoint.model_file import read_export
from seqtk.cli.average import main
from tests.unit.training.helpers import trainer


@pytest.fixture(scope="module")
def run_dir(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    trainer(tiny_corpus, path, checkpoint__every=2, max_updates=6, validation__every=6).fit()
    return path


def test_fewer_checkpoints_than_asked_for_are_counted(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"checkpoint={run_dir}", "last=2"])
    assert capsys.readouterr().out.startswith("Mean of 2 checkpoints: update_00000004, update_00000006\n")
    main([f"checkpoint={run_dir}", "last=99"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"last=99, but {run_dir} holds 3 checkpoints."
    assert said[1].startswith("Mean of 3 checkpoints")


def test_what_is_later_than_latest_is_no_part_of_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "latest").write_text("update_00000004")
    main([f"checkpoint={run_dir}"])
    assert "Mean of 2 checkpoints: update_00000002, update_00000004" in capsys.readouterr().out
    assert read_export(run_dir / "average.safetensors").info["averaged"] == [2, 4]


def test_a_folder_that_is_not_there_is_not_an_empty_one(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "empty").mkdir(exist_ok=True)
    for name, words in (("emty", "There is no folder {}."), ("empty", "There are no checkpoints in {}.")):
        with pytest.raises(SystemExit):
            main([f"checkpoint={run_dir / name}"])
        assert words.format(run_dir / name) in capsys.readouterr().err
