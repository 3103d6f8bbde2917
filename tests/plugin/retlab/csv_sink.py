"""A log sink: `SAVE_DIR/log.csv` with the columns kind, update, name, value."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass

from seqtk.training.logging import RunInfo, Sink, SinkConfig, sinks
from seqtk.utils.files import write_text


@dataclass(frozen=True)
class CsvConfig(SinkConfig):
    """A config without settings."""


@sinks.register("csv", CsvConfig)
class CsvSink(Sink):
    """Writes one row for each value."""

    def start(self, run: RunInfo) -> None:
        path = run.save_dir / "log.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            rows = list(csv.reader(path.open(newline="")))
            write_text(path, "".join(",".join(row) + "\n" for row in rows if run.keeps(row[0], int(row[1]))))
        self.file = path.open("a", newline="", buffering=1)
        self.writer = csv.writer(self.file, lineterminator="\n")

    def metrics(self, kind: str, update: int, values: Mapping[str, float | int | str]) -> None:
        self.writer.writerows((kind, update, name, value) for name, value in values.items())

    def close(self) -> None:
        self.file.close()
