"""Data sources. Importing a file registers the sources in it."""

from seqtk.data.sources import databin as databin
from seqtk.data.sources.base import Items, Source, SourceConfig, sources
from seqtk.data.sources.databin import DataBinSource, DataBinSourceConfig
from seqtk.data.sources.labelled import LabelledSource, LabelledSourceConfig
from seqtk.data.sources.text import GivenText, TextSource

__all__ = [
    "DataBinSource",
    "DataBinSourceConfig",
    "GivenText",
    "Items",
    "LabelledSource",
    "LabelledSourceConfig",
    "Source",
    "SourceConfig",
    "TextSource",
    "sources",
]
