"""Log sinks: the entries that a resumed run keeps, and a sink of a plug-in."""

import csv
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seqtk.training.logging import Jsonl, JsonlConfig, Metrics, RunInfo, Sink, SinkConfig, format_number, sinks
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer


@dataclass(frozen=True)
class CsvConfig(SinkConfig):
    """Config of a sink that writes a table."""

    name: str = "log.csv"


class Csv(Sink):
    """Writes the loss of each log line to a CSV file."""

    def start(self, run: RunInfo) -> None:
        self.path = run.save_dir / self.config.name
        rows = list(csv.reader(self.path.read_text().splitlines())) if self.path.exists() else []
        self.rows = [row for row in rows if run.keeps(row[0], int(row[1]))]

    def metrics(self, kind: str, update: int, values: Metrics) -> None:
        self.rows.append([kind, str(update), str(values["loss"])])

    def close(self) -> None:
        with self.path.open("w") as file:
            csv.writer(file).writerows(self.rows)


@pytest.fixture
def csv_sink() -> Iterator[None]:
    """Registers the sink for one test."""
    sinks.register("csv", CsvConfig)(Csv)
    yield
    del sinks._config_types["csv"], sinks._classes[CsvConfig]


@pytest.mark.usefixtures("csv_sink")
def test_plugin_sink_is_written_and_resumed(tiny_corpus: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"log__sinks": ["jsonl", {"kind": "csv", "name": "table.csv"}]}
    trainer(tiny_corpus, tmp_path, max_updates=6, **changes).fit()
    (tmp_path / "latest").write_text("update_00000004")
    trainer(tiny_corpus, tmp_path, max_updates=8, **changes).fit()
    rows = [(kind, int(update)) for kind, update, _ in csv.reader((tmp_path / "table.csv").read_text().splitlines())]
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert rows == [(line["kind"], line["update"]) for line in lines]
    assert [update for kind, update in rows if kind == "train"] == list(range(1, 9))


def test_run_without_console_sink_prints_nothing(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=1, log__sinks=["jsonl"]).fit()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "update", "pending", "kept"),
    [
        ("train", 4, False, True),
        ("train", 5, False, False),
        ("valid", 4, False, True),
        ("valid", 4, True, False),
        ("train", 4, True, True),
    ],
)
def test_run_keeps_entries_that_are_not_repeated(kind: str, update: int, pending: bool, kept: bool) -> None:
    run = RunInfo(Path(), resumed_at=4, pending_validation=pending)
    assert run.keeps(kind, update) is kept
    assert not RunInfo(Path()).keeps(kind, update)


def test_jsonl_sink_removes_an_incomplete_last_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "train", "update": 1, "loss": 2.0}\n{"kind": "train", "upd')
    sink = Jsonl(JsonlConfig())
    sink.start(RunInfo(tmp_path, resumed_at=1))
    sink.metrics("train", 2, {"loss": 1.0})
    sink.close()
    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("value", "text"), [(0.000123456, "0.0001235"), (12345.6, "12,346"), (1e30, "1e+30"), (12345, "12,345")]
)
def test_printed_numbers_have_four_significant_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_histograms_are_written_at_their_interval(tiny_corpus: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tiny_corpus, tmp_path, log__tensorboard=True, log__histograms=3).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    names = events.Tags()["histograms"]
    assert "weights/decoder.blocks.0.feed_forward.expand.weight" in names
    assert [event.step for event in events.Histograms(names[0])] == [3, 6, 8]


@pytest.mark.parametrize(
    "changes", [{"log__sinks": ["jsonl", "jsonl"]}, {"log__sinks": ["jsonl"], "log__histograms": 3}]
)
def test_sinks_without_a_use_are_refused(tiny_corpus: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"log\.(sinks|histograms)"):
        trainer(tiny_corpus, tmp_path / "run", log__tensorboard=False, **changes)
    assert not (tmp_path / "run").exists()


class TestWandb:
    @pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
    def test_wandb_sink_without_wandb_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"log\.sinks=wandb.*not installed"):
            trainer(tiny_corpus, tmp_path / "run", log__sinks=["wandb"])
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    def test_resumed_run_keeps_its_wandb_id(self, tiny_corpus: Path, tmp_path: Path) -> None:
        pytest.importorskip("wandb")
        changes: dict[str, Any] = {"log__sinks": ["jsonl", {"kind": "wandb", "project": "test"}], "log__histograms": 4}
        trainer(tiny_corpus, tmp_path, max_updates=4, **changes).fit()
        before = (tmp_path / "wandb" / "id").read_text()
        trainer(tiny_corpus, tmp_path, max_updates=8, **changes).fit()
        assert (tmp_path / "wandb" / "id").read_text() == before
        assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 2
