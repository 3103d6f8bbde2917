"""All processes that resume from one folder load the same checkpoint, or all of them fail."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqtk.checkpoint.restore import Checkpoint, load_checkpoint, load_latest
from seqtk.checkpoint.run_state import Checkpoints, Pieces, TrainState
from seqtk.utils.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Checkpoints:
    """The folder of a run with the checkpoints of updates 1 and 2."""
    checkpoints = Checkpoints(tmp_path, config={"task": {}, "model": {}}, assets={}, metric="loss")
    for update in (1, 2):
        checkpoints.save({"w": torch.full((2,), float(update))}, Pieces({}), TrainState(update=update))
    return checkpoints


def latest(folder: Path, gather: Callable[[str], list[str]]) -> tuple[Checkpoint, str]:
    return load_latest(folder, load_checkpoint, gather=gather, otherwise="Start a new run.")


def damage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged")


def test_processes_load_the_newest_common_checkpoint(run: Checkpoints) -> None:
    newest = run.folders()[-1]
    loaded, line = latest(newest, lambda name: [name, "update_00000001"])
    assert loaded.state.update == 1
    assert str(newest) in line
    assert line.endswith("update_00000001.")


def test_message_names_damaged_and_loaded_checkpoint(run: Checkpoints) -> None:
    newest = _intact(run)
    damage(newest)
    loaded, line = latest(newest, lambda name: [name, "update_00000001"])
    assert loaded.state.update == 1
    assert [str(folder) in line for folder in run.folders()] == [False, True, True]
    assert line.endswith("update_00000001.")


def test_unreadable_checkpoints_end_all_processes(run: Checkpoints) -> None:
    for folder in run.folders():
        damage(folder)
    tried: list[str] = []

    def gather(name: str) -> list[str]:
        tried.append(name)
        return [name]

    with pytest.raises(UserError, match="damaged"):
        latest(run.folders()[-1], gather)
    assert len(tried) == 1
    with pytest.raises(UserError, match=str(run.directory)):
        latest(_intact(run), lambda name: [name, *tried])


def _intact(run: Checkpoints) -> Path:
    """Saves an intact checkpoint of the same run, as another process would read it, and returns its folder."""
    return run.save({"w": torch.zeros(2)}, Pieces({}), TrainState(update=3))
