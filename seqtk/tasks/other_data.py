"""Replaces the data of a loaded model's task by other data."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from seqtk.data.corpus import find_text
from seqtk.data.labelled_text import Columns
from seqtk.data.sources import DataBinSource, GivenText, LabelledSource, LabelledSourceConfig
from seqtk.data.temporary_databin import encode_text
from seqtk.tasks.base import Task
from seqtk.tasks.classification import ClassificationTask
from seqtk.tasks.language_modeling import SampleTask
from seqtk.tasks.text import TextTask
from seqtk.utils.errors import UserError, how_many, naming
from seqtk.utils.text_io import read_lines


@contextlib.contextmanager
def other_data(
    task: Task,
    *,
    data: str | None,
    split: str,
    input: str | None,
    references: Sequence[str] = (),
    columns: Columns | None = None,
) -> Iterator[str]:
    """Makes a task read other data while the block runs. Yields the name of the split.

    Args:
        task: The task of a loaded model.
        data: The location of the data. None: the data of training.
        split: The split of the data.
        input: A text file to read instead of a split; "-" is standard input.
        columns: For a classifier: the columns of `input` with the texts and the classes.
        references: For a task with two sides: the files of the target side, of which only the first is used.
    """
    if input is not None and data is not None:
        raise UserError("input= and data= are both set.", "Set one of them: a text, or a split of the data.")
    if not isinstance(task, TextTask):
        if input is not None or data is not None:
            raise UserError("The data of this task cannot be replaced.", "Remove input= and data=.")
        yield split
        return
    before = task._source
    with tempfile.TemporaryDirectory(prefix="seqtk-") as folder:
        try:
            if input is None:
                if not (data or task.config.data):
                    raise UserError("No data is set.", "Set input=FILE, or data=DATA-BIN.")
                task.open(data)
                yield split
            elif isinstance(task, SampleTask):
                made = encode_text(
                    _text_file(input, Path(folder)),
                    Path(folder) / "made",
                    vocabulary=task.vocabulary,
                    tokenizer=task.tokenizer,
                )
                task.open(DataBinSource(data=str(made.directory)))
                yield "test"
            elif isinstance(task, ClassificationTask):
                if references:
                    raise UserError(
                        "reference= is not for classifiers.", "input= contains the classes: set columns.label=."
                    )
                columns = columns or Columns()
                if task.pairs and columns.second is None:
                    columns = replace(columns, second="second")
                task.open(LabelledSource(LabelledSourceConfig(**vars(columns)), data=input))
                yield "test"
            else:
                languages = {key: getattr(task, key, None) for key in ("source_lang", "target_lang")}
                sides = parallel_lines([("input", input), *(("reference", path) for path in references[:1])])
                task.open(GivenText(*sides, **languages, name=f"input={input}"))
                yield "input"
        finally:
            task._source = before


def _text_file(path: str, folder: Path) -> Path:
    """Returns the path of a text file. Copies standard input into a file in `folder`."""
    if path != "-":
        return find_text(path, None)
    copy = folder / "standard-input"
    with naming(copy), open(copy, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return copy


def parallel_lines(files: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Returns the lines of files, each given as (key, path).

    Raises UserError unless all have the same number of lines.
    """
    texts = [list(read_lines(path)) for _, path in files]
    for (key, path), lines in zip(files, texts, strict=True):
        if len(lines) != len(texts[0]):
            raise UserError(
                f"{key}={path} has {how_many(len(lines), 'line')}, "
                f"but {'='.join(files[0])} has {how_many(len(texts[0]), 'line')}.",
                "Both need the same number of lines.",
            )
    return texts
