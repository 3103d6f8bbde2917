"""Models of other toolkits in and out: one import line for each importer and exporter, which registers it."""

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
