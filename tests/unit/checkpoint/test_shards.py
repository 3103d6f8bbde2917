"""The optimizer's state in the files of several processes is read completely, or an error is raised."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.checkpoint.model_file import load_tensors, save_tensors
from seqtk.checkpoint.restore import load_checkpoint
from seqtk.checkpoint.run_state import PIECES, Checkpoints, Pieces, Place, TrainState
from seqtk.utils.errors import UserError

WHOLE = {
    "w/exp_avg": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
    "w/step": torch.tensor(7.0),
    "b/exp_avg": torch.arange(1.0, 2.0, dtype=torch.bfloat16),
}


def rows(full: Tensor, start: int, end: int) -> tuple[Tensor, Place]:
    """Returns (some rows of a tensor, their position in the tensor)."""
    return full[start:end], {"start": start, "size": list(full.shape)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two processes. They have three and two rows of a matrix; only the first has a vector."""
    w, b, step = WHOLE["w/exp_avg"], WHOLE["b/exp_avg"], WHOLE["w/step"]
    (first, at_first), (second, at_second), (none, at_none) = rows(w, 0, 3), rows(w, 3, 5), rows(b, 1, 1)
    mine = Pieces({"w/exp_avg": first, "w/step": step, "b/exp_avg": b}, {"w/exp_avg": at_first}, 0)
    other = Pieces({"w/exp_avg": second, "b/exp_avg": none}, {"w/exp_avg": at_second, "b/exp_avg": at_none}, 1)
    checkpoints = Checkpoints(tmp_path, config={"task": {}, "model": {}}, assets={}, metric="loss")
    folder = checkpoints.save({"w": w}, mine, TrainState(update=1))
    other.write(folder)
    checkpoints.save_state(TrainState(update=1))
    return folder


def test_pieces_are_read_as_whole_tensors(folder: Path) -> None:
    read = load_checkpoint(folder).optimizer
    assert read.keys() == WHOLE.keys()
    assert all(torch.equal(read[name], whole) and read[name].dtype == whole.dtype for name, whole in WHOLE.items())


def test_pieces_are_read_into_differently_sharded_tensors(folder: Path) -> None:
    """A checkpoint may be read by processes that have different rows than the processes that wrote it."""
    target = torch.full_like(WHOLE["w/exp_avg"], torch.nan)
    read = load_checkpoint(folder, empty=lambda name, full: target if name == "w/exp_avg" else torch.empty(full.shape))
    assert read.optimizer["w/exp_avg"] is target
    assert torch.equal(target, WHOLE["w/exp_avg"])


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Returns a function that changes the positions in the header of a file, but not its checksums."""

    def rewrite(path: Path) -> None:
        tensors, metadata = load_tensors(path)
        change(metadata)
        save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, metadata)

    return rewrite


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def set_place(**values: object) -> Callable[[Path], object]:
    return rewritten(lambda metadata: metadata[PIECES]["w/exp_avg"].update(values))


BAD: dict[str, Callable[[Path], object]] = {
    "flipped bit": flip_a_bit,
    "missing file": Path.unlink,
    "no places": rewritten(lambda metadata: metadata.clear()),
    "places of a different type": rewritten(lambda metadata: metadata.update({PIECES: [1]})),
    "place of a different type": rewritten(lambda metadata: metadata[PIECES].update({"w/exp_avg": 3})),
    "no size": rewritten(lambda metadata: metadata[PIECES]["w/exp_avg"].pop("size")),
    "different size": set_place(size=[6, 3]),
    "too few axes": set_place(size=[5]),
    "other axes": set_place(size=[5, 4]),
    "outside": set_place(start=4),
    "overlap": set_place(start=0),
    "negative": set_place(start=-1),
    "text": set_place(start="3"),
    "fraction": set_place(start=3.5),
}


@pytest.mark.parametrize("damage", BAD.values(), ids=BAD)
def test_damaged_or_misplaced_pieces_are_refused(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder / "optimizer_00001.safetensors")
    with pytest.raises(UserError, match=str(folder)) as raised:
        load_checkpoint(folder)
    assert len(str(raised.value).splitlines()) <= 3


def test_missing_piece_is_refused(folder: Path) -> None:
    """The checkpoint is refused even if `state.json` does not list the missing file."""
    (folder / "optimizer_00001.safetensors").unlink()
    state = folder / "state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps({name: value for name, value in values.items() if name not in ("crc32", "files")}))
    with pytest.raises(UserError, match="w/exp_avg"):
        load_checkpoint(folder)


def test_piece_of_a_different_process_is_refused(folder: Path) -> None:
    (folder / "optimizer_00002.safetensors").write_bytes((folder / "optimizer_00001.safetensors").read_bytes())
    with pytest.raises(UserError, match="w/exp_avg"):
        load_checkpoint(folder)
