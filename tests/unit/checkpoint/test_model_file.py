"""A model as one file: complete, inert, and refused in words when it is not whole."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seqtk.checkpoint.model_file import average, load_model, read_export, tensors_of, write_export
from seqtk.data.databin import DataBin
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer


@pytest.fixture(scope="module")
def run_dir(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    trainer(tiny_corpus, path, checkpoint__every=2).fit()
    return path


def test_a_loaded_model_is_the_trained_one_and_needs_no_corpus(tiny_corpus: Path, run_dir: Path) -> None:
    run = trainer(tiny_corpus, run_dir)
    loaded = load_model(run_dir / "update_00000008")
    assert not loaded.model.training
    for name, tensor in tensors_of(run.model).items():
        assert torch.equal(tensor, tensors_of(loaded.model)[name])
    data = DataBin(tiny_corpus)
    assert loaded.task.assets() == run.task.assets()
    assert loaded.task.source_vocabulary.tokens == data.vocabulary("en").tokens  # type: ignore[attr-defined]
    batch = run.task.collate([run.train_set[0]])
    run.model.eval()
    with torch.no_grad():
        assert torch.equal(run.model(batch), loaded.model(batch))


def test_a_save_dir_stands_for_its_best_model(run_dir: Path) -> None:
    assert read_export(run_dir).info == read_export(run_dir / "best.safetensors").info


def test_a_file_is_hardly_larger_than_its_weights_and_texts(run_dir: Path) -> None:
    export = read_export(run_dir)
    content = sum(tensor.nbytes for tensor in export.tensors.values()) + sum(map(len, export.assets.values()))
    assert (run_dir / "best.safetensors").stat().st_size < 1.1 * content + 20_000


def test_a_truncated_file_is_refused(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((run_dir / "best.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.safetensors is not a whole safetensors file"):
        load_model(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "y.pt").write_bytes(b"\x80\x02cposix\nsystem\n")
    for name, message in (("x.safetensors", "no seqtk model"), ("y.pt", "not a whole"), ("z", "is not there")):
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / name)


def test_a_config_that_this_version_does_not_know_names_the_key(run_dir: Path, tmp_path: Path) -> None:
    export = read_export(run_dir)
    export.config["model"]["width"] = 3
    write_export(tmp_path / "new.safetensors", export)
    with pytest.raises(UserError, match=r"written by seqtk .*'model.width'"):
        load_model(tmp_path / "new.safetensors")


def test_tensors_of_another_model_are_named(run_dir: Path, tmp_path: Path) -> None:
    export = read_export(run_dir)
    export.config["model"]["ffn_dim"] = 64
    write_export(tmp_path / "other.safetensors", export)
    with pytest.raises(UserError, match=r"feed_forward.*\[32, 16\] there, \[64, 16\] here"):
        load_model(tmp_path / "other.safetensors")


def test_the_average_is_the_mean_of_the_weights(run_dir: Path) -> None:
    folders = sorted(str(path) for path in run_dir.glob("update_*"))
    mean = average(folders)
    for name, tensor in mean.tensors.items():
        expected = torch.stack([read_export(path).tensors[name].double() for path in folders]).mean(0)
        assert torch.allclose(tensor.double(), expected, atol=1e-7)
    assert mean.info["averaged"] == [int(path[-8:]) for path in folders]


def test_a_file_without_its_vocabulary_is_not_whole(run_dir: Path, tmp_path: Path) -> None:
    export = read_export(run_dir)
    export.assets.clear()
    write_export(tmp_path / "model.safetensors", export)
    with pytest.raises(UserError, match=r"lacks 'source\..*it is not whole"):
        load_model(tmp_path / "model.safetensors")


def test_a_file_appears_whole_or_not_at_all(run_dir: Path, tmp_path: Path) -> None:
    export = read_export(run_dir)
    target = tmp_path / "full" / "model.safetensors"
    with pytest.raises(OSError, match="full"):
        write_export(target, export)
    assert not target.exists()
    assert os.listdir(tmp_path) == []
