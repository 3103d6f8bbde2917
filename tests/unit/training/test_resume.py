"""What a run leaves behind wherever it ends, and what the one that goes on from there makes of it."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import checkpoints_of
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, tiny_config, trainer


def listed(folder: Path) -> list[int]:
    """The updates of the checkpoints in a folder."""
    return sorted(int(path.name.removeprefix("update_")) for path in folder.glob("update_????????"))


@pytest.mark.parametrize("began_at", [0, 2])
def test_what_an_abandoned_run_saved_later_is_put_aside_and_neither_counts_nor_is_averaged(
    tiny_corpus: Path, tmp_path: Path, began_at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"checkpoint__every": 1, "checkpoint__keep_last": 9, "checkpoint__keep_best": 9, "validation__every": 2}
    trainer(tiny_corpus, tmp_path, **kept).fit()
    pointer = tmp_path / "latest"
    pointer.write_text(f"update_{began_at:08d}") if began_at else pointer.unlink()
    if began_at:
        assert [path.name for path in checkpoints_of(tmp_path)] == ["update_00000001", "update_00000002"]
    again = trainer(tiny_corpus, tmp_path, **{**kept, "checkpoint__keep_last": 2, "max_updates": 4})
    again.fit()
    assert listed(tmp_path) == [3, 4]
    assert pointer.read_text() == "update_00000004"
    aside = tmp_path / "abandoned_1"
    assert listed(aside) == list(range(began_at + 1, 9))
    assert f"after update {began_at} is in {aside} now" in capsys.readouterr().err
    assert {int(path.stem[-8:]) for path in tmp_path.glob("best_loss_*")} == {2, 4}
    assert {int(path.stem[-8:]) for path in aside.glob("best_loss_*")} == set(range(began_at + 2, 9, 2))
    assert model_file.read(aside / "best.safetensors").info["update"] > began_at
    assert model_file.read(tmp_path / "best.safetensors").info["update"] <= 4


def test_a_run_that_goes_on_puts_nothing_aside(tiny_corpus: Path, tmp_path: Path) -> None:
    for end in (3, 6):
        trainer(tiny_corpus, tmp_path, max_updates=end, checkpoint__every=1).fit()
    assert listed(tmp_path) == [2, 3, 4, 5, 6]
    assert not list(tmp_path.glob("abandoned*"))


class BrokenError(Exception):
    """Ends a run where a test wants it to."""


@pytest.mark.parametrize("end", ["killed", "told to stop"])
@pytest.mark.parametrize("update", [4, 8])
def test_a_checkpoint_comes_before_its_validation_which_is_made_once_by_the_run_that_goes_on(
    tiny_corpus: Path, tmp_path: Path, update: int, end: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer(tiny_corpus, tmp_path / "whole", validation__patience=9).fit()
    first = trainer(tiny_corpus, tmp_path / "parts", validation__patience=9)

    def interrupt(module: Any, inputs: Any) -> None:
        if not module.training and first.state.update == update:
            if end == "killed":
                raise BrokenError
            if not first._noted_signal:
                signal.raise_signal(signal.SIGTERM)

    first.objective.register_forward_pre_hook(interrupt)
    if end == "killed":
        with pytest.raises(BrokenError):
            first.fit()
    else:
        assert first.fit() == signal.SIGTERM
        said = capfd.readouterr().err
        assert f"Stopping after update {update}; once more to stop at once." in said
        assert f"Stopped by a signal after update {update}; the same command goes on from it with its" in said
    assert first.state.update == update
    assert first.checkpoints.latest() == tmp_path / "parts" / f"update_{update:08d}"
    assert [at for at, _ in losses(tmp_path / "parts", "valid")] == list(range(4, update, 4))
    second = trainer(tiny_corpus, tmp_path / "parts", validation__patience=9)
    assert second.state.validation_owed
    assert second.fit() == 0
    for kind in ("train", "valid"):
        assert losses(tmp_path / "whole", kind) == losses(tmp_path / "parts", kind)
    states = [
        json.loads((tmp_path / folder / "update_00000008" / "state.json").read_text()) for folder in ("whole", "parts")
    ]
    assert states[0] | {"seconds": 0} == states[1] | {"seconds": 0}
    assert not states[0]["validation_owed"]
    assert trainer(tiny_corpus, tmp_path / "parts", validation__patience=9).fit() == 0
    assert [at for at, _ in losses(tmp_path / "parts", "valid")] == [4, 8]


def test_a_validation_that_was_logged_but_not_noted_is_not_logged_twice(tiny_corpus: Path, tmp_path: Path) -> None:
    first = trainer(tiny_corpus, tmp_path, max_updates=4)
    first.fit()
    first.checkpoints.save_state(first.state.after(validation_owed=True, best=None, validations_without_best=0))
    trainer(tiny_corpus, tmp_path, max_updates=4).fit()
    assert [at for at, _ in losses(tmp_path, "valid")] == [4]
    assert [at for at, _ in losses(tmp_path)] == [1, 2, 3, 4]


def test_a_signal_within_an_update_ends_the_run_after_that_update(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path)

    def interrupt(module: Any, inputs: Any) -> None:
        if run.state.update == 1 and not run._noted_signal:
            signal.raise_signal(signal.SIGINT)

    run.objective.register_forward_pre_hook(interrupt)
    assert run.fit() == signal.SIGINT
    assert run.state.update == 2


def test_an_update_that_cannot_be_made_leaves_a_checkpoint_of_the_one_before(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path / "whole").fit()
    run = trainer(tiny_corpus, tmp_path / "parts", checkpoint__every=100, validation__every=100)
    parameter = next(iter(run.model.parameters()))
    parameter.register_hook(lambda gradient: gradient * float("nan") if run.state.update == 5 else gradient)
    with pytest.raises(UserError, match=r"update 6 is not finite(.|\n)*The last checkpoint is of update 5;"):
        run.fit()
    again = trainer(tiny_corpus, tmp_path / "parts")
    assert again.state.update == 5
    again.fit()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_first_update_that_cannot_be_made_leaves_nothing(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path)
    next(iter(run.model.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="There is no checkpoint; lower"):
        run.fit()
    assert listed(tmp_path) == []


def test_what_is_set_otherwise_is_told_and_that_a_finished_run_was_not_trained_with_it(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tiny_corpus, tmp_path).fit()
    trainer(tiny_corpus, tmp_path).fit()
    assert "ther than before" not in capsys.readouterr().err
    other = {"optimizer__lr": 0.5, "criterion": "cross_entropy"}
    trainer(tiny_corpus, tmp_path, **other).fit()
    said = capsys.readouterr().err
    told = "criterion=cross_entropy (was label_smoothed_cross_entropy), optimizer.lr=0.5 (was 0.01)"
    assert f"Other than before: {told}.\n" in said
    assert "nothing was trained with what is other now. Set another save_dir" in said
    trainer(tiny_corpus, tmp_path, **other, max_updates=9).fit()
    said = capsys.readouterr().err
    assert f"Other than before: max_updates=9 (was 8), {told}.\n" in said
    assert "nothing was trained" not in said


def test_a_save_dir_without_a_name_is_refused(tiny_corpus: Path) -> None:
    with pytest.raises(UserError, match="save_dir= is empty"):
        replace(tiny_config(tiny_corpus, Path()), save_dir=" ").check()
