"""Importers and exporters, and plug-ins that add one."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from seqtk.checkpoint import trained_model
from seqtk.checkpoint.model_file import tensors_of
from seqtk.cli.export import main as export
from seqtk.cli.import_model import main as import_model
from seqtk.interop import exporters, importers
from tests.unit.cli.test_eval_lm import make

PLUGIN = '''
"""A format that is a folder with one file for each tensor."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from seqtk.checkpoint.model_file import ModelFile, tensors_of
from seqtk.checkpoint.trained_model import LoadedModel
from seqtk.config.fields import setting
from seqtk.interop import Exporter, ExporterConfig, Importer, ImporterConfig, exporters, importers
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_directory


@dataclass(frozen=True)
class FolderExportConfig(ExporterConfig):
    """A folder of arrays."""

    suffix: str = setting("npy", help="The suffix of the files.")


@exporters.register("folder", FolderExportConfig)
class FolderExporter(Exporter):
    def write(self, loaded: LoadedModel, output: Path) -> None:
        with atomic_directory(output) as folder:
            for name, tensor in tensors_of(loaded.model).items():
                with open(folder / f"{name}.{self.config.suffix}", "wb") as file:
                    np.save(file, tensor.numpy())
            (folder / "model.json").write_text(json.dumps([loaded.config, loaded.task.assets()]))


@dataclass(frozen=True)
class FolderImportConfig(ImporterConfig):
    """A folder of arrays."""


@importers.register("folder", FolderImportConfig)
class FolderImporter(Importer):
    def read(self, path: Path) -> ModelFile:
        if not (path / "model.json").is_file():
            raise UserError(f"checkpoint={path} is no folder of arrays.")
        config, assets = json.loads((path / "model.json").read_text())
        tensors = {file.stem: torch.from_numpy(np.load(file)) for file in path.glob("*.npy")}
        return ModelFile(tensors, config, assets, {"imported_from": path.name})
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interop")
    make(folder, "words")
    (folder / "folder_format.py").write_text(PLUGIN)
    return folder


def test_npz_has_weights_config_and_vocabulary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "model.npz"
    export([f"checkpoint={folder / 'words.safetensors'}", "format=npz", f"output={output}"])
    assert capsys.readouterr().out == f"{output}\n"
    loaded = trained_model.load(folder / "words.safetensors")
    with np.load(output) as archive:  # without pickle
        assert json.loads(str(archive["config"])) == loaded.config
        assert json.loads(str(archive["assets"])) == loaded.task.assets()
        for name, tensor in tensors_of(loaded.model).items():
            np.testing.assert_array_equal(archive[name], tensor.numpy())
    export([f"checkpoint={folder / 'words.safetensors'}", "format=npz", "format.dtype=float16", f"output={output}"])
    with np.load(output) as archive:
        assert {archive[name].dtype.name for name in tensors_of(loaded.model)} == {"float16"}


def test_commands_use_importer_and_exporter_of_a_plugin(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = f"user_dir={folder / 'folder_format.py'}"
    model, arrays, back = folder / "words.safetensors", folder / "arrays", folder / "back.safetensors"
    export([plugin, f"checkpoint={model}", "format=folder", f"output={arrays}"])
    import_model([plugin, f"checkpoint={arrays}", "format=folder", f"output={back}"])
    assert "language_modeling model" in capsys.readouterr().out
    one, other = (tensors_of(trained_model.load(path).model) for path in (model, back))
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert {"folder"} <= set(importers) & set(exporters)


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (export, "output=x", "checkpoint= is not set"),
        (export, "checkpoint=words.safetensors", "output= is not set"),
        (export, "checkpoint=words.safetensors output=x", "format= is not set"),
        (export, "checkpoint=words.safetensors output=no/x format=npz", "there is no folder no"),
        (export, "checkpoint=words.safetensors output=x format=npy", "'npz'"),
        (export, "checkpoint=words.safetensors output=x format=npz format.dtype=int8", "format.dtype"),
        (import_model, "output=x", "checkpoint= is not set"),
        (import_model, "checkpoint=words.safetensors output=x", "format= is not set"),
        (import_model, "checkpoint=words.safetensors output=x format=fairseq", "a model file of seqtk"),
    ],
)
def test_error_names_the_key(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: object,
    arguments: str,
    words: str,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as raised:
        command(arguments.split())  # type: ignore[operator]
    assert raised.value.code == 2
    assert words in capsys.readouterr().err
    assert not (folder / "x").exists()


def test_archive_is_written_atomically(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    export([f"checkpoint={folder / 'words.safetensors'}", "format=npz", f"output={tmp_path / 'link'}"])
    assert zipfile.is_zipfile(tmp_path / "target")
    assert (tmp_path / "link").is_symlink()
