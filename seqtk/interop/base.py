"""The base classes and registries of importers (from other toolkits) and exporters (to other toolkits).

An importer or exporter consists of a config dataclass and a class. Both are registered under a name, a value of
`format=`.
"""

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from seqtk.checkpoint.model_file import ModelFile
from seqtk.checkpoint.trained_model import LoadedModel
from seqtk.config.fields import setting
from seqtk.config.registry import Registry
from seqtk.utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class ImporterConfig:
    """Base class of the configs of importers."""


@dataclass(frozen=True)
class ExporterConfig:
    """Base class of the configs of exporters."""


@dataclass(frozen=True)
class ImportModelConfig:
    """Settings of seqtk-import: the model to read, its format, and the file to write."""

    checkpoint: str = setting("", help="The file or folder that the other toolkit wrote.")
    format: ImporterConfig = setting(ImporterConfig(), help="The name of the format.")
    output: str = setting("", help="The model file to write.")
    user_dir: str | None = setting(None, help="A package or module with plug-ins (importers), which is imported first.")


@dataclass(frozen=True)
class ExportConfig:
    """Settings of seqtk-export: the model, the format, and where to write it."""

    checkpoint: str = setting("", help="A model file, the folder of one checkpoint, or the folder of a run.")
    format: ExporterConfig = setting(ExporterConfig(), help="The name of the format.")
    output: str = setting("", help="The file or folder to write.")
    user_dir: str | None = setting(None, help="A package or module with plug-ins (exporters), which is imported first.")


class Importer(abc.ABC):
    """Reads a model that another toolkit wrote.

    Args:
        config: The importer's settings (`format.key=value` on the command line).
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    @abc.abstractmethod
    def read(self, path: Path) -> ModelFile:
        """Returns the model at `path` as the contents of a model file.

        The returned `config` must have `task` and `model`; `assets` must equal the task's `assets()`. Raises
        UserError if the file is not a model of the toolkit, or if seqtk cannot reproduce the model.
        """


class Exporter(abc.ABC):
    """Writes a model for another toolkit.

    Args:
        config: The exporter's settings (`format.key=value` on the command line).
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    @abc.abstractmethod
    def write(self, loaded: LoadedModel, output: Path) -> None:
        """Writes `loaded` to `output`, a file or a folder, atomically (`seqtk.utils.files`).

        Raises UserError if the other toolkit cannot run the model.
        """


importers: Registry[Importer] = Registry("importer", ImporterConfig)
exporters: Registry[Exporter] = Registry("exporter", ExporterConfig)


def chosen(registry: Registry[T], config: Any) -> T:
    """Returns the importer or exporter that `format=` selects. Raises UserError if `format=` is not set."""
    if not registry.knows(type(config)):
        raise UserError("format= is not set.", f"Set it to one of {', '.join(registry)}.")
    return registry.build(config)
