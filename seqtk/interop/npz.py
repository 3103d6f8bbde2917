"""Exports a model as one NumPy archive: parameters as arrays, configuration and vocabularies as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqtk.checkpoint.model_file import tensors_of
from seqtk.checkpoint.trained_model import LoadedModel
from seqtk.config.fields import setting
from seqtk.interop.base import Exporter, ExporterConfig, exporters
from seqtk.utils.files import atomic_file


@dataclass(frozen=True)
class NpzConfig(ExporterConfig):
    """A NumPy archive (.npz)."""

    dtype: Literal["float32", "float16"] = setting("float32", help="The type of floating-point arrays.")


@exporters.register("npz", NpzConfig)
class NpzExporter(Exporter):
    """Writes a NumPy archive with one array per parameter, under the parameter's name. Nothing is pickled.

    `json.loads(str(archive["config"]))` is the configuration. `assets` (vocabularies, tokenizers) and `info` are JSON
    too. Tied weights appear once.
    """

    config: NpzConfig

    def write(self, loaded: LoadedModel, output: Path) -> None:
        arrays: dict[str, Any] = {
            name: tensor.float().cpu().numpy().astype(self.config.dtype)
            if tensor.is_floating_point()
            else tensor.cpu().numpy()
            for name, tensor in tensors_of(loaded.model).items()
        }
        texts = {"config": loaded.config, "assets": loaded.task.assets(), "info": loaded.info}
        arrays |= {name: np.array(json.dumps(value)) for name, value in texts.items()}
        with atomic_file(output) as file:
            np.savez(file, **arrays)
