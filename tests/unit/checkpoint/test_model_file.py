"""Model files: loading without the corpus, old versions, errors, writing and averaging."""

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save_file

from seqtk.checkpoint import edit, model_file, trained_model
from seqtk.checkpoint.model_file import tensors_of
from seqtk.data.sources.databin import DataBin
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer
from tests.waiting import PATIENCE

OLD_CONFIGS: dict[str, Any] = json.loads((Path(__file__).parent / "configs_0_1_0.json").read_text())
"""The settings `task` and `model` that version 0.1.0 wrote for every recipe and every attention layer."""


@pytest.fixture(scope="module")
def run_dir(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    trainer(tiny_corpus, path, checkpoint__every=2).fit()
    return path


class TestLoad:
    def test_model_loads_without_its_corpus(self, tiny_corpus: Path, run_dir: Path) -> None:
        run = trainer(tiny_corpus, run_dir)
        loaded = trained_model.load(run_dir / "update_00000008")
        assert not loaded.model.training
        for name, tensor in tensors_of(run.model).items():
            assert torch.equal(tensor, tensors_of(loaded.model)[name])
        data = DataBin(tiny_corpus)
        assert loaded.task.assets() == run.task.assets()
        assert loaded.task.source_vocabulary.tokens == data.vocabulary("en").tokens  # type: ignore[attr-defined]

    def test_run_folder_loads_its_best_model(self, run_dir: Path) -> None:
        assert model_file.read(run_dir).info == model_file.read(run_dir / "best.safetensors").info

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("width", 3, r"new\.safetensors was written by seqtk .*model\.width"),
            ("ffn_dim", 64, r"feed_forward.*\[32, 16\].*\[64, 16\]"),
        ],
    )
    def test_error_names_unknown_key_or_wrong_shape(
        self, run_dir: Path, tmp_path: Path, key: str, value: int, words: str
    ) -> None:
        contents = model_file.read(run_dir)
        contents.config["model"][key] = value
        model_file.write(tmp_path / "new.safetensors", contents)
        with pytest.raises(UserError, match=words):
            trained_model.load(tmp_path / "new.safetensors")

    @pytest.mark.parametrize(
        ("user_dir", "fix"), [(None, "install the plug-in, or set user_dir"), ("x.py", "user_dir=x.py")]
    )
    def test_error_about_an_unknown_kind_names_the_plugin(
        self, run_dir: Path, tmp_path: Path, user_dir: str | None, fix: str
    ) -> None:
        contents = model_file.read(run_dir)
        contents.config["model"]["kind"] = "of_a_plugin"
        contents.config["user_dir"] = user_dir
        model_file.write(tmp_path / "new.safetensors", contents)
        with pytest.raises(UserError, match=rf"called 'of_a_plugin'\.\n.*{fix}"):
            trained_model.load(tmp_path / "new.safetensors")

    def test_loading_ignores_training_settings(self, run_dir: Path, tmp_path: Path) -> None:
        contents = model_file.read(run_dir)
        config = {**contents.config, "optimizer": {"kind": "of the future"}, "new": 1}
        model_file.write(tmp_path / "a.safetensors", replace(contents, config=config))
        assert trained_model.load(tmp_path / "a.safetensors").config == config

    def test_file_without_vocabulary_is_refused(self, run_dir: Path, tmp_path: Path) -> None:
        contents = model_file.read(run_dir)
        contents.assets.clear()
        model_file.write(tmp_path / "model.safetensors", contents)
        with pytest.raises(UserError, match=r"source\..*incomplete"):
            trained_model.load(tmp_path / "model.safetensors")


class TestOldFiles:
    @pytest.mark.parametrize("name", OLD_CONFIGS)
    def test_configs_of_version_0_1_0_are_read(self, name: str, run_dir: Path) -> None:
        contents = replace(model_file.read(run_dir), config=OLD_CONFIGS[name])
        model = trained_model.parts_of(contents, source=name).model
        numbers = {key: value for key, value in contents.config["model"].items() if isinstance(value, int | float)}
        assert {key: getattr(model, key) for key in numbers if hasattr(model, key)}.items() <= numbers.items()

    def test_old_demo_model_loads_as_a_translation_model(self, run_dir: Path, tmp_path: Path) -> None:
        contents = model_file.read(run_dir)
        task = {**OLD_CONFIGS["demo"]["task"], "data": "gone"}
        model_file.write(tmp_path / "demo.safetensors", replace(contents, config={**contents.config, "task": task}))
        assert type(trained_model.load(tmp_path / "demo.safetensors").task).__name__ == "TranslationTask"


class TestOtherFiles:
    """The error about a file that is not a model says what the file is."""

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("log.jsonl", b'{"kind": "train"}\n', r"log\.jsonl is a training log"),
            ("a.yaml", b"task: translation\n", r"a recipe"),
            ("checkpoint.pt", b"PK\x03\x04...", r"PyTorch's format(.|\n)*seqtk-import-fairseq"),
            ("old.pt", b"\x80\x02\x8a\x0al\xfc", r"PyTorch's format"),
            ("train.idx", b"TNTIDX\x00\x00", r"data-bin"),
            ("dict.en.txt", b"a 1\n", r"a dictionary"),
            ("text", b"Hello.\n", r"a text file"),
            ("empty", b"", r"an empty file"),
        ],
    )
    def test_error_names_the_kind_of_file(self, name: str, content: bytes, words: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            trained_model.load(tmp_path / name)

    def test_error_says_that_the_file_is_optimizer_state(self, run_dir: Path) -> None:
        with pytest.raises(UserError, match="state of an optimizer"):
            trained_model.load(run_dir / "update_00000008" / "optimizer.safetensors")

    def test_safetensors_file_without_config_is_refused(self, tmp_path: Path) -> None:
        save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=r"x\.safetensors"):
            trained_model.load(tmp_path / "x.safetensors")

    def test_truncated_file_is_reported_as_damaged(self, run_dir: Path, tmp_path: Path) -> None:
        path = tmp_path / "cut.safetensors"
        path.write_bytes((run_dir / "best.safetensors").read_bytes()[:-100])
        with pytest.raises(UserError, match=r"cut\.safetensors is damaged"):
            trained_model.load(path)

    def test_error_says_that_the_path_is_a_data_bin(self, tiny_corpus: Path) -> None:
        with pytest.raises(UserError, match="data-bin"):
            trained_model.load(tiny_corpus)

    def test_missing_path_suggests_a_similar_file(self, run_dir: Path) -> None:
        with pytest.raises(UserError, match=r"does not exist(.|\n)*best\.safetensors"):
            trained_model.load(run_dir / "bets.safetensors")


class TestWrite:
    def test_file_is_hardly_larger_than_weights_and_texts(self, run_dir: Path) -> None:
        contents = model_file.read(run_dir)
        size = sum(tensor.nbytes for tensor in contents.tensors.values()) + sum(map(len, contents.assets.values()))
        assert (run_dir / "best.safetensors").stat().st_size < 1.1 * size + 20_000

    def test_failed_write_leaves_no_file(self, run_dir: Path, tmp_path: Path) -> None:
        contents = model_file.read(run_dir)
        with pytest.raises(UserError, match="full"):
            model_file.write(tmp_path / "full" / "model.safetensors", contents)
        assert os.listdir(tmp_path) == []

    def test_file_permissions_follow_the_umask(self, run_dir: Path, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            model_file.write(tmp_path / "a.safetensors", model_file.read(run_dir))
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640

    def test_writing_to_a_symlink_writes_its_target(self, run_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "file")
        model_file.write(tmp_path / "link", model_file.read(run_dir))
        assert (tmp_path / "link").is_symlink()
        trained_model.load(tmp_path / "file")

    def test_model_is_written_to_a_named_pipe(self, run_dir: Path, tmp_path: Path) -> None:
        contents, got = model_file.read(run_dir), []
        os.mkfifo(tmp_path / "pipe")
        reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()), daemon=True)
        reader.start()
        model_file.write(tmp_path / "pipe", contents)
        reader.join(timeout=PATIENCE)
        assert deserialize(got[0]).keys() == contents.tensors.keys()


class TestAverage:
    def test_average_is_the_mean_of_the_weights(self, run_dir: Path) -> None:
        folders = sorted(run_dir.glob("update_*"))
        mean = edit.average(folders)
        for name, tensor in mean.tensors.items():
            expected = torch.stack([model_file.read(path).tensors[name].double() for path in folders]).mean(0)
            assert torch.allclose(tensor.double(), expected, atol=1e-7)
        assert mean.info["averaged"] == [int(path.name[-8:]) for path in folders]

    @pytest.mark.parametrize("value", [torch.nan, -torch.inf, 1e30])
    def test_weights_that_are_not_finite_are_refused(self, run_dir: Path, tmp_path: Path, value: float) -> None:
        contents = model_file.read(run_dir)
        next(iter(contents.tensors.values())).view(-1)[3] = value
        model_file.write(tmp_path / "nan.safetensors", contents)
        with pytest.raises(UserError, match=r"nan\.safetensors(.|\n)*infinite, NaN"):
            edit.average([run_dir, tmp_path / "nan.safetensors"])

    def test_averaging_models_of_two_runs_is_refused(self, run_dir: Path, tmp_path: Path) -> None:
        contents = model_file.read(run_dir)
        model_file.write(tmp_path / "a.safetensors", replace(contents, config={**contents.config, "seed": 5}))
        with pytest.raises(UserError, match="different runs"):
            edit.average([run_dir, tmp_path / "a.safetensors"])


class TestCheckpointsOf:
    @pytest.mark.parametrize("name", ["", "best.safetensors", "update_00000004", "update_00000004/model.safetensors"])
    def test_checkpoints_are_found_from_any_file_of_a_run(self, name: str, run_dir: Path) -> None:
        names = [path.name for path in edit.checkpoints_of(run_dir / name)]
        assert names == ["update_00000002", "update_00000004", "update_00000006", "update_00000008"]

    def test_file_outside_a_run_is_refused(self, run_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        model_file.write(tmp_path / "a" / "b" / "a.safetensors", model_file.read(run_dir))
        with pytest.raises(UserError, match="checkpoint="):
            edit.checkpoints_of(tmp_path / "a" / "b" / "a.safetensors")
