"""An exporter and an importer: NumPy archives."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from seqtk.checkpoint.model_file import ModelFile, tensors_of
from seqtk.checkpoint.trained_model import LoadedModel
from seqtk.interop.base import Exporter, ExporterConfig, Importer, ImporterConfig, exporters, importers
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file


@dataclass(frozen=True)
class NumpyArchiveExporterConfig(ExporterConfig):
    """A config without settings."""


@exporters.register("numpy_archive", NumpyArchiveExporterConfig)
class NumpyArchiveExporter(Exporter):
    """Writes the weights as arrays, and everything else as JSON in one more array."""

    def write(self, loaded: LoadedModel, output: Path) -> None:
        about = {"config": loaded.config, "assets": loaded.task.assets(), "info": loaded.info}
        arrays = {name: tensor.numpy() for name, tensor in tensors_of(loaded.model).items()}
        with atomic_file(output) as file:
            np.savez(file, **arrays, __about__=np.array(json.dumps(about)))


@dataclass(frozen=True)
class NumpyArchiveImporterConfig(ImporterConfig):
    """A config without settings."""


@importers.register("numpy_archive", NumpyArchiveImporterConfig)
class NumpyArchiveImporter(Importer):
    """Reads the files that `NumpyArchiveExporter` writes."""

    def read(self, path: Path) -> ModelFile:
        try:
            arrays = dict(np.load(path))
            about = json.loads(str(arrays.pop("__about__")))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{path} is not a model in a NumPy archive: {error}.") from error
        return ModelFile({name: torch.from_numpy(array) for name, array in arrays.items()}, **about)
