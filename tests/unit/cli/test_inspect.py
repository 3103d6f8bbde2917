"""seqtk-inspect: contents and integrity of a model or run, and differences between two models."""

import shutil
from pathlib import Path

import pytest

from seqtk.checkpoint import model_file
from seqtk.cli.inspect import main
from tests.unit.training.helpers import trainer


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    trainer(tiny_corpus, folder, max_updates=4).fit()
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


class TestOneModel:
    def test_inspecting_a_run_lists_its_checkpoints(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = shown(capsys, str(run))
        for part in (
            "10,432 parameters",
            "update_00000003: update 3",
            "best.safetensors: ",
            "model.dim=16",
            "Verified",
        ):
            assert part in text

    @pytest.mark.parametrize("name", ["best.safetensors", "update_00000004", "update_00000004/model.safetensors"])
    def test_models_and_checkpoints_are_shown(self, run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
        text = shown(capsys, str(run / name))
        assert "encoder.blocks.*.self_attention" in text
        assert "Verified" in text

    def test_tokens_with_line_separators_are_counted(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=1).fit()
        model = model_file.read(tmp_path)
        name, text = next((name, text) for name, text in model.assets.items() if name.endswith(".dict"))
        model.assets[name] = text.replace(" ", "\u2028 ", 1)
        model_file.write(tmp_path / "separator.safetensors", model)
        count = text.count("\n") + 4
        assert f"{name}: {count:,} tokens" in shown(capsys, str(tmp_path / "separator.safetensors"))

    def test_error_names_a_damaged_checkpoint(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=4).fit()
        path = tmp_path / "update_00000003" / "optimizer.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        with pytest.raises(SystemExit) as end:
            main([str(tmp_path)])
        assert end.value.code == 2
        captured = capsys.readouterr()
        assert "update_00000003" in captured.err
        assert "update_00000004: update 4" in captured.out

    def test_model_file_without_a_tensor_is_refused(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        contents = model_file.read(run)
        contents.tensors.pop("encoder.blocks.0.feed_forward.expand.bias")
        model_file.write(tmp_path / "broken.safetensors", contents)
        with pytest.raises(SystemExit):
            main([str(tmp_path / "broken.safetensors")])
        assert "encoder.blocks.0.feed_forward.expand.bias" in capsys.readouterr().err


class TestTwoModels:
    def test_equal_models_show_no_difference(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = shown(capsys, str(run / "update_00000004"), str(run / "update_00000004/model.safetensors"))
        changes = [line.split()[-1] for line in text.splitlines() if "blocks" in line]
        assert set(changes) == {"0.00%"}

    def test_differences_between_models_are_shown(
        self, run: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changes = {"attention": [{"kind": "synthesizer_dense", "max_length": 64}], "optimizer__lr": 0.5}
        trainer(tiny_corpus, tmp_path, max_updates=1, **changes).fit()
        lines = [line.split() for line in shown(capsys, str(run), str(tmp_path)).splitlines()]
        assert ["optimizer.lr", "0.01", "0.5"] in lines
        (layer,) = (line for line in lines if line[0] == "encoder.blocks.*.self_attention")
        assert layer[1:5] == ["0", "4", "4", "4"]  # tensors: equal, changed, removed, added

    def test_error_names_a_damaged_checkpoint_of_either_run(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damaged = shutil.copytree(run, tmp_path / "damaged")
        path = damaged / "update_00000004" / "optimizer.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(SystemExit, match="2"):
            main([str(run), str(damaged)])
        assert "update_00000004" in capsys.readouterr().err


@pytest.mark.parametrize("paths", [[], ["a", "b", "c"], ["missing"], ["setup.cfg"]])
def test_wrong_paths_are_refused(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(paths)
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) <= 3
