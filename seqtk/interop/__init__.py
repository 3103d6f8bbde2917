"""Import and export of models of other toolkits. Importing a file registers the importers and exporters in it."""

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
