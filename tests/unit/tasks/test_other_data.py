"""A task reads the text file of a user instead of its training data."""

from pathlib import Path

import pytest

from seqtk.tasks import tasks
from seqtk.tasks.base import TaskConfig
from seqtk.tasks.other_data import other_data
from seqtk.tasks.text import TextTask
from seqtk.tasks.translation import TranslationConfig
from seqtk.utils.errors import UserError


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text"
    path.write_text("a b\nc\n")
    return str(path)


def test_task_of_a_plugin_reads_text_without_references(text: str) -> None:
    task = TextTask(TaskConfig())
    with other_data(task, data=None, split="test", input=text) as split:
        source = task.open()
        assert source.lines(split, source.source_lang) == ["a b", "c"]


def test_translation_requires_references(text: str, tiny_corpus: Path) -> None:
    task = tasks.build(TranslationConfig(data=str(tiny_corpus)))
    with (
        pytest.raises(UserError, match=r"requires references.*\nSet reference="),
        other_data(task, data=None, split="test", input=text),
    ):
        pass
