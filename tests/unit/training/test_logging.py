"""Log sinks: the entries that a resumed run keeps, and a sink of a plug-in."""

import csv
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seqtk.training.logging import (
    Jsonl,
    JsonlConfig,
    Logger,
    Metrics,
    RunInfo,
    Sink,
    SinkConfig,
    TensorBoardConfig,
    format_number,
    sinks,
)
from seqtk.utils.errors import UserError
from tests.e2e.runs import finish
from tests.unit.training.helpers import trainer
from tests.waiting import wait_until


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


@pytest.mark.usefixtures("csv_sink")
def test_sinks_are_closed_if_another_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Logger([CsvConfig(), CsvConfig(name=".")], RunInfo(tmp_path))
    assert (tmp_path / "log.csv").exists()  # written by `close`


@pytest.mark.usefixtures("csv_sink")
def test_sink_that_cannot_start_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Logger([JsonlConfig(), TensorBoardConfig(), CsvConfig(name=".")], RunInfo(tmp_path))
    assert list(tmp_path.iterdir()) == []


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
def test_log_keeps_entries_of_updates_that_are_not_repeated(kind: str, update: int, pending: bool, kept: bool) -> None:
    run = RunInfo(Path(), resumed_at=4, pending_validation=pending)
    assert run.keeps(kind, update) is kept
    assert not RunInfo(Path()).keeps(kind, update)


@pytest.mark.parametrize("last", [b'{"kind": "train", "upd', b"\xff\0\n"])
def test_jsonl_sink_removes_a_damaged_last_line(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"kind": "train", "update": 1, "loss": 2.0}\n' + last)
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
def test_duplicate_sinks_and_unused_histograms_are_refused(
    tiny_corpus: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"log\.(sinks|histograms)"):
        trainer(tiny_corpus, tmp_path / "run", log__tensorboard=False, **changes)
    assert not (tmp_path / "run").exists()


WANDB: dict[str, Any] = {"log__sinks": ["jsonl", {"kind": "wandb", "project": "test"}]}
DECODING: dict[str, Any] = {"validation__decode": True, "validation__search__max_length_b": 5}


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips the test if wandb is not installed. Otherwise, hides the user's login and settings from wandb."""
    pytest.importorskip("wandb", reason="requires wandb: pip install 'seqtk-torch[wandb]'")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("wandb")
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder))


def sessions_of(save_dir: Path) -> list[tuple[dict[int, dict[str, Any]], int | None]]:
    """Waits until wandb has written all sessions of a run. Returns (update → values, exit code) of each session."""
    paths = sorted((save_dir / "wandb").glob("offline-run-*/*.wandb"))
    wait_until(lambda: all(offline_run(path)[1] is not None for path in paths))
    return [offline_run(path) for path in paths]


def offline_run(path: Path) -> tuple[dict[int, dict[str, Any]], int | None]:
    """Returns (update → values, exit code or None if it is not written yet) from a file of wandb.

    The file has a header of 7 bytes, and blocks of 32 KiB. A record is in one or more parts of one block each, with a
    header of 7 bytes: a checksum, the length, and whether the part is complete (1), or the first (2) to last (4).
    """
    from wandb.proto import wandb_internal_pb2

    block, header = 1 << 15, 7
    data, start, parts = path.read_bytes(), header, b""
    rows: dict[int, dict[str, Any]] = {}
    code = None
    while start + header <= len(data):
        if block - start % block < header:
            start += block - start % block
            continue
        end = start + header + int.from_bytes(data[start + 4 : start + 6], "little")
        parts += data[start + header : end]
        if data[start + 6] in (1, 4):
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            if record.HasField("history"):
                row = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                rows[row["_step"]] = row
            elif record.HasField("exit"):
                code = record.exit.exit_code
        start = end
    return rows, code


class TestWandb:
    @pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
    def test_wandb_sink_without_wandb_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"log\.sinks=wandb.*not installed"):
            trainer(tiny_corpus, tmp_path / "run", log__sinks=["wandb"])
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    @pytest.mark.usefixtures("wandb")
    def test_every_value_is_in_the_offline_run(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """The run is resumed: the values of both sessions are checked, and the sessions have the same id."""
        changes = {**WANDB, "log__histograms": 4, **DECODING}
        trainer(tiny_corpus, tmp_path, max_updates=4, **changes).fit()
        before = (tmp_path / "wandb" / "id").read_text()
        trainer(tiny_corpus, tmp_path, max_updates=8, **changes).fit()
        assert (tmp_path / "wandb" / "id").read_text() == before
        sessions = sessions_of(tmp_path)
        assert [code for _, code in sessions] == [0, 0]
        assert [sorted(rows) for rows, _ in sessions] == [[1, 2, 3, 4], [5, 6, 7, 8]]
        rows = sessions[0][0] | sessions[1][0]
        for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()):
            kind, row = line.pop("kind"), rows[line.pop("update")]
            assert {name: row[f"{kind}/{name}"] for name in line} == line
        for row in (rows[4], rows[8]):
            assert row["weights/decoder.blocks.0.feed_forward.expand.weight/_type"] == "histogram"
            assert "**source**" in row["samples/sample 0"]

    @pytest.mark.slow
    @pytest.mark.usefixtures("wandb")
    def test_run_that_fails_is_marked_as_failed(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, optimizer__lr=1e30, **WANDB)
        with pytest.raises(UserError, match="not finite"):
            run.fit()
        assert [code for _, code in sessions_of(tmp_path)] == [1]

    @pytest.mark.slow
    @pytest.mark.usefixtures("wandb")
    def test_error_of_the_caller_does_not_mark_a_run_as_failed(self, tiny_corpus: Path, tmp_path: Path) -> None:
        try:
            raise MemoryError
        except MemoryError:
            trainer(tiny_corpus, tmp_path, max_updates=1, **WANDB).fit()
        assert [code for _, code in sessions_of(tmp_path)] == [0]

    @pytest.mark.slow
    @pytest.mark.usefixtures("wandb")
    def test_online_run_without_a_login_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path / "run", log__sinks=[{"kind": "wandb", "mode": "online"}])
        with pytest.raises(UserError, match=r"log\.sinks=wandb.*\n.*\n.*mode: offline"):
            run.fit()

    @pytest.mark.slow
    @pytest.mark.usefixtures("wandb")
    def test_only_the_first_of_two_processes_writes(self, tiny_corpus: Path, tmp_path: Path) -> None:
        finish(tiny_corpus, tmp_path / "run", "log.sinks=[wandb]", "log.every=1", "max_updates=2", processes=2)
        assert [(sorted(rows), code) for rows, code in sessions_of(tmp_path / "run")] == [([1, 2], 0)]
