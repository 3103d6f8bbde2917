"""seqtk-plot: curves of runs, and errors."""

import json
from pathlib import Path

import pytest

from seqtk.cli.plot import main, read_curves
from seqtk.utils.errors import UserError


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs with a decreasing loss. The folder name of the second has a space, a comma, and an invalid formula."""
    folders = [tmp_path / "a", tmp_path / "b, lr=$\\2$"]
    for folder in folders:
        folder.mkdir()
        lines = [
            {"kind": kind, "update": at, "loss": 9 / at, "lr": 0.1} for at in (1, 2, 3) for kind in ("train", "valid")
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(folder) for folder in folders]


@pytest.mark.parametrize(("name", "start"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_one_picture_shows_several_runs(runs: list[str], tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    main([*runs, "metric=loss", f"output={tmp_path / name}"])
    assert (tmp_path / name).read_bytes().startswith(start)


def test_curves_are_separate_for_train_and_valid(runs: list[str]) -> None:
    assert read_curves(Path(runs[0]), "loss") == {kind: [(1, 9.0), (2, 4.5), (3, 3.0)] for kind in ("train", "valid")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "runs="),
        (["RUN", "metric=los"], "'loss'"),
        (["RUN", "output=c.gif"], "output=c.gif"),
        (["nowhere"], "nowhere"),
        (["RUN/notes"], "notes"),
    ],
)
def test_runs_that_cannot_be_plotted_are_refused(
    runs: list[str], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (Path(runs[0]) / "notes").write_text("no log\n")
    with pytest.raises(SystemExit) as caught:
        main([argument.replace("RUN", runs[0]) for argument in arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    with pytest.raises(UserError, match="los"):
        read_curves(Path(runs[0]), "los")
