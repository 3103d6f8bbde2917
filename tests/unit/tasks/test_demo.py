"""The demo's corpus is made once, and is the one that the settings ask for."""

from dataclasses import replace
from pathlib import Path

import pytest

from seqtk.tasks.demo import DemoConfig, DemoTask
from seqtk.utils.errors import UserError


@pytest.fixture
def config(tmp_path: Path) -> DemoConfig:
    made = DemoConfig(data=str(tmp_path / "demo"), pairs=300, vocab_size=200)
    DemoTask.prepare(made)
    return made


def test_a_corpus_that_is_there_is_left_as_it_is(config: DemoConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(config.data).rglob("*")}
    DemoTask.prepare(config)
    assert {path: path.stat().st_mtime_ns for path in Path(config.data).rglob("*")} == before


@pytest.mark.parametrize("change", [{"pairs": 400}, {"vocab_size": 210}, {"corpus_seed": 2}])
def test_a_corpus_of_other_settings_is_not_taken_for_it(config: DemoConfig, change: dict[str, int]) -> None:
    ((key, value),) = change.items()
    with pytest.raises(UserError, match=rf"task\.{key}={getattr(config, key)}, not {value}(.|\n)*task\.data"):
        DemoTask.prepare(replace(config, **change))


def test_a_corpus_that_the_task_did_not_make_is_used_as_it_is(config: DemoConfig) -> None:
    (Path(config.data) / "demo.json").unlink()
    DemoTask.prepare(replace(config, pairs=5))
