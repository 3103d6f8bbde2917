"""Imports models from other toolkits, and exports models to them. Importing a module registers its classes."""

from seqtk.interop import fairseq as fairseq
from seqtk.interop import npz as npz
from seqtk.interop.base import (
    ExportConfig,
    Exporter,
    ExporterConfig,
    Importer,
    ImporterConfig,
    ImportModelConfig,
    chosen,
    exporters,
    importers,
)

__all__ = [
    "ExportConfig",
    "Exporter",
    "ExporterConfig",
    "ImportModelConfig",
    "Importer",
    "ImporterConfig",
    "chosen",
    "exporters",
    "importers",
]
