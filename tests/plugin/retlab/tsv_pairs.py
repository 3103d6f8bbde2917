"""A data source: sentence pairs in `SPLIT.tsv`, one pair a line, source and target separated by a tab."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seqtk.config.fields import setting
from seqtk.data.sources import SourceConfig, TextSource, sources
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class TsvPairsConfig(SourceConfig):
    """Config of the source `tsv_pairs`."""

    lowercase: bool = setting(False, help="Lowercase the text.")


@sources.register("tsv_pairs", TsvPairsConfig)
class TsvPairs(TextSource):
    """Reads `task.data/SPLIT.tsv`."""

    def read(self, split: str) -> Iterator[list[str]]:
        path = Path(self.name) / f"{split}.tsv"
        if not path.is_file():
            raise UserError(f"task.data={self.name} has no file {path.name}.")
        for line in path.read_text(encoding="utf-8").splitlines():
            yield (line.lower() if self.config.lowercase else line).split("\t")
