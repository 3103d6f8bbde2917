"""Temporarily replaces the data of a loaded model's task, for decoding and evaluation."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from seqtk.data.char_tokenizer import BYTE_NAMES, character_name
from seqtk.data.corpus import find_text
from seqtk.data.labelled_text import Columns
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.sources import DataBinSource, GivenText, LabelledSource, LabelledSourceConfig
from seqtk.data.sources.base import OtherDictionaryError
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.data.vocabulary_building import Tokens
from seqtk.tasks.base import Task
from seqtk.tasks.classification import ClassificationTask
from seqtk.tasks.language_modeling import SampleTask
from seqtk.tasks.text import TextTask
from seqtk.utils.errors import UserError, how_many, naming
from seqtk.utils.text_io import read_lines

LINE_FEEDS = (BYTE_NAMES[ord("\n")], character_name("\n"))


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
    """Context manager in which a task reads `data` or `input` instead of its training data.

    Yields the name of the split to read.

    Args:
        task: The task of a loaded model.
        data: The location of the data. If it is None, it is the location of the training data.
        split: The split of the data.
        input: A text file to read instead of a split, or "-" for standard input.
        references: For translation: the files with the references. The first file becomes the target.
        columns: For a classifier: the columns of `input` that contain the texts and the classes.
    """
    if input is not None and data is not None:
        raise UserError("input= and data= are both set.", "Set only one of them: a text file, or the location of data.")
    if not isinstance(task, TextTask):
        if input is not None or data is not None:
            raise UserError("This task can read only the data in task.data.", "Remove input= and data=.")
        yield split
        return
    before = task._source
    with tempfile.TemporaryDirectory(prefix="seqtk-") as folder:
        try:
            if input is None:
                open_data(task, data)
                yield split
            elif isinstance(task, SampleTask):
                text, databin = _text_file(input, Path(folder)), Path(folder) / "data-bin"
                _encode(text, databin, vocabulary=task.vocabulary, tokenizer=task.tokenizer)
                task.open(DataBinSource(data=str(databin)))
                yield "test"
            elif isinstance(task, ClassificationTask):
                if references:
                    raise UserError(
                        "reference= has no effect on classifiers.",
                        "Set columns.label= to the column of input= that contains the classes.",
                    )
                columns = columns or Columns()
                if task.pairs and columns.second is None:
                    columns = replace(columns, second="second")
                task.open(LabelledSource(LabelledSourceConfig(**vars(columns)), data=input))
                yield "test"
            elif task.pairs and not references:
                raise UserError(
                    f"input={input} requires references, because this task has pairs of texts.",
                    "Set reference=FILE, with one line for each line of input=.",
                )
            else:
                languages = {key: getattr(task, key, None) for key in ("source_lang", "target_lang")}
                sides = parallel_lines([("input", input), *(("reference", path) for path in references[:1])])
                task.open(GivenText(*sides, **languages, name=f"input={input}"))
                yield "input"
        finally:
            task._source = before


def open_data(task: TextTask, data: str | None) -> None:
    """Opens the data set `data`, or the training data if it is None. Errors also suggest setting `input=`.

    Raises:
        UserError: If no data are set, or they do not match the model.
    """
    if not (data or task.config.data):
        raise UserError("No data is set.", "Set input=FILE, or data=DATA-BIN.")
    try:
        task.open(data)
    except OtherDictionaryError as error:
        raise UserError(*str(error).splitlines(), "Or set input= to the text file instead of data=.") from error


def _text_file(path: str, folder: Path) -> Path:
    """Returns the path of a text file. Copies standard input into a file in `folder`."""
    if path != "-":
        return find_text(path, None)
    copy = folder / "standard-input"
    with naming(copy), open(copy, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return copy


def _encode(path: Path, databin: Path, *, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Writes a data-bin whose split `test` is the text at `path`, and writes the vocabulary and tokenizer next to it.

    If line feeds were tokens in training, they are tokens here too. Otherwise, each line ends in EOS.
    """
    separators: dict[str | None, Tokens] = {name: name for name in ("bytes", "characters", "lowercase_words")}
    tokens = separators.get(tokenizer.separator, "words")
    has_line_feeds = any(vocabulary.counts[vocabulary.id(name)] > 0 for name in LINE_FEEDS if name in vocabulary)
    dictionary, model = databin.with_name("given.txt"), databin.with_name("given.model")
    vocabulary.save(dictionary)
    if tokenizer.model_bytes is not None:
        tokens = "sentencepiece"
        model.write_bytes(tokenizer.model_bytes)
    preprocess(
        PreprocessConfig(
            tokens=tokens,
            test=(str(path),),
            source_dict=str(dictionary) if tokens != "bytes" else None,
            sentencepiece=str(model) if tokens == "sentencepiece" else None,
            remove_bpe=tokenizer.separator if tokens == "words" else None,
            line_end=None if has_line_feeds else "eos",
            destdir=str(databin),
            workers=1,
        )
    )


def parallel_lines(files: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Returns the lines of each file. A file is given as (key, path), such as ("input", "test.en").

    Raises UserError unless all files have the same number of lines. The error names the keys.
    """
    texts = [list(read_lines(path)) for _, path in files]
    for (key, path), lines in zip(files, texts, strict=True):
        if len(lines) != len(texts[0]):
            raise UserError(
                f"{key}={path} has {how_many(len(lines), 'line')}, "
                f"but {'='.join(files[0])} has {how_many(len(texts[0]), 'line')}.",
                "They must have the same number of lines.",
            )
    return texts
