"""Reads labeled examples from files: texts in TSV, CSV or JSON lines (plain or compressed), and NumPy arrays."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqtk.config.fields import setting
from seqtk.data.labelled_arrays import ARRAY_FORMATS, ArrayFile, is_array_file
from seqtk.utils.errors import UserError, how_many
from seqtk.utils.suggestions import nearest
from seqtk.utils.text_io import SUFFIXES, read_lines

TEXT_FORMATS = ("tsv", "csv", "jsonl")
ENDINGS = (
    *(f".{ending}{suffix}" for ending in TEXT_FORMATS for suffix in SUFFIXES),
    *(f".{ending}" for ending in ARRAY_FORMATS),
)
"""The file extensions of labeled files."""
_KEYS_OF_COLUMNS = (
    "Set columns.text=, columns.second= and columns.label= (in seqtk-train, task.source.text= and so on) to names, "
    "or to numbers if there is no header."
)
_BLANKS = str.maketrans("\t\r\n", "   ")
_LARGEST_FIELD = 1 << 30


@dataclass(frozen=True)
class Columns:
    """Settings of the columns of a labeled file: names or, if the file has no header, numbers from 1."""

    text: tuple[str, ...] = setting(
        ("text",),
        help="Name or number of the text column. Several columns are joined by spaces: [title,description]. "
        "In an .npz file: the name of the array of pixels or tokens.",
    )
    second: str | None = setting(
        None, help="Name or number of the column with the second text of each pair. null: single texts."
    )
    label: str = setting(
        "label",
        help="Name or number of the column with the class. In an .npz file: the name of the array of classes. "
        "The classes of NAME.npy are in NAME.label.npy.",
    )
    lengths: str | None = setting(
        None,
        help="In .npz and .npy files: the name of the array of lengths, if the items are padded or concatenated.",
    )
    classes: tuple[str, ...] = setting(
        (),
        help="Names of classes for the values in the column: [VALUE:CLASS,...], such as [1:World,2:Sports]. []: the "
        "values are the names.",
    )


@dataclass(frozen=True)
class LabelledText:
    """A labeled example."""

    line: int
    """The line number in a text file (of the last line of the example), or the number of the item, from 1."""
    texts: tuple[str, ...]
    """One text or two texts, without line ends."""
    label: str


def place_of(line: int, path: str) -> str:
    """Returns the position of an example for an error message: "Line 3 of FILE", or "Example 3 of FILE" for arrays."""
    return f"{'Example' if is_array_file(path) else 'Line'} {line:,} of {path}"


def read_labelled(path: str, columns: Columns, *, array_texts: bool = True) -> Iterator[LabelledText]:
    """Yields the examples of a file. The format follows from the file extension (see `format_of`).

    TSV has no quotes. CSV follows RFC 4180: quoted fields may contain commas, quotes and line ends. Tabs and line ends
    in a field become spaces. An item of an array becomes a text of its pixels or tokens, separated by spaces. Without
    `array_texts`, examples of array files have no texts, which takes less time.

    Raises:
        UserError: If the file or a column of `columns` is missing, if the file is empty, if no text column is set,
            or if a class is empty or not in `columns.classes`.
    """
    class_of = _class_of(path, columns)
    if is_array_file(path):
        array = open_arrays(path, columns)
        parts = array.parts() if array_texts else ()
        items = (item for symbols, sizes in parts for item in np.split(symbols, np.cumsum(sizes)[:-1]))
        for number, label in enumerate(array.labels(), 1):
            texts = (" ".join(map(str, next(items).tolist())),) if array_texts else ()
            yield LabelledText(number, texts, class_of(label, number))
        return
    if columns.lengths is not None:
        raise UserError(f"columns.lengths={columns.lengths} has no effect on {path}, which is not a NumPy file.")
    if not columns.text:
        raise UserError("columns.text=[] names no column.", _KEYS_OF_COLUMNS)
    keys = [*columns.text, *([columns.second] if columns.second is not None else []), columns.label]
    count, found = len(columns.text), False
    for number, fields in _records(path, keys):
        found = True
        cleaned = [field.translate(_BLANKS) for field in fields[:-1]]
        yield LabelledText(number, (" ".join(cleaned[:count]), *cleaned[count:]), class_of(fields[-1], number))
    if not found:
        raise UserError(f"{path} has no examples.")


def open_arrays(path: str, columns: Columns) -> ArrayFile:
    """Opens a NumPy file. Raises UserError if the file is invalid, or if `columns` has settings for text files."""
    if columns.second is not None:
        raise UserError(
            f"columns.second={columns.second}: {path} cannot have pairs, because it is not a text file.",
            "Remove columns.second=.",
        )
    if len(columns.text) != 1 or (path.endswith(".npy") and columns.text != Columns.text):
        raise UserError(
            f"columns.text=[{','.join(columns.text)}] is not possible for {path}.",
            "Set it to the name of one array in an .npz file. Remove it for an .npy file, whose array has no name.",
        )
    return ArrayFile(path, items=columns.text[0], labels=columns.label, lengths=columns.lengths)


def _class_of(path: str, columns: Columns) -> Callable[[str, int], str]:
    """Returns a function of (value, line number) that maps a value of the label column to its class.

    Tabs and line ends in a value become spaces. Spaces at its start and end are removed.
    """
    pairs = [entry.partition(":") for entry in columns.classes]
    for entry, (value, colon, name) in zip(columns.classes, pairs, strict=True):
        if not (value.strip() and colon and name.strip()):
            raise UserError(
                f"columns.classes has the entry '{entry}', but entries must have the form VALUE:CLASS.",
                "For example: [1:World,2:Sports].",
            )
    named = {value.strip(): name.strip() for value, _, name in pairs}
    if len(named) < len(pairs):
        raise UserError(f"columns.classes=[{','.join(columns.classes)}] has two entries for the same value.")

    def class_of(value: str, line: int) -> str:
        label = value.translate(_BLANKS).strip()
        if not label:
            raise UserError(f"{place_of(line, path)} has no class: the column '{columns.label}' is empty.")
        if named and label not in named:
            raise UserError(
                f"{place_of(line, path)} has the class '{label}', which has no entry in columns.classes.",
                nearest(label, named),
            )
        return named.get(label, label)

    return class_of


def class_names(labels: Iterable[str]) -> list[str]:
    """Returns the sorted distinct labels: sorted by value if all are integers, else by code points."""
    names = set(labels)
    numeric = all(re.fullmatch(r"-?[0-9]+", name) for name in names)
    return sorted(names, key=lambda name: (int(name) if numeric else 0, name))


def check_classes(classes: Sequence[str], *, of: str) -> None:
    """Raises UserError unless there are at least two classes, all different. `of` is the name of their file."""
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(f"{of} has the class '{twice}' twice.")
    if not any(classes):
        raise UserError(f"{of} has no classes.", "A classifier requires two or more.")
    if len(classes) < 2:
        raise UserError(f"All examples of {of} have the class '{classes[0]}'.", "A classifier requires two or more.")


def class_numbers(
    examples: Iterable[LabelledText], classes: Sequence[str], *, path: str
) -> Iterator[tuple[LabelledText, int]]:
    """Yields each example with the index of its class in `classes`.

    Raises:
        UserError: If a class is not in `classes` (the classes of the training examples). The error names the line.
    """
    number = {name: index for index, name in enumerate(classes)}
    for example in examples:
        if example.label not in number:
            raise UserError(
                f"{place_of(example.line, path)} has the class '{example.label}', which no training example has.",
                nearest(example.label, classes),
            )
        yield example, number[example.label]


def format_of(path: str) -> str:
    """Returns the format of a text file from its extension (ignoring `.gz` etc.): `tsv` (default), `csv` or `jsonl`."""
    name = Path(path)
    suffix = Path(name.stem).suffix if name.suffix in SUFFIXES else name.suffix
    return suffix.removeprefix(".") if suffix.removeprefix(".") in TEXT_FORMATS else "tsv"


def _records(path: str, keys: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of each record, with the fields that `keys` names, in the order of `keys`."""
    if format_of(path) == "jsonl":
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield number, _json_fields(line, keys, path, number)
        return
    rows = csv_rows(path) if format_of(path) == "csv" else _tsv_rows(path)
    indices = [int(key) - 1 for key in keys] if all(key.isdecimal() and int(key) > 0 for key in keys) else None
    width = None
    for number, row in rows:
        if width is not None and len(row) != width:
            raise UserError(
                f"Line {number:,} of {path} has {how_many(len(row), 'column')}, but its header has {width}."
            )
        if indices is None:
            width = len(row)
            missing = [key for key in keys if key not in row]
            if missing:
                raise UserError(
                    f"{path} has no column '{missing[0]}' in its header, line {number:,}.",
                    nearest(missing[0], row),
                    _KEYS_OF_COLUMNS,
                )
            twice = [key for key in keys if row.count(key) > 1]
            if twice:
                raise UserError(
                    f"{path} has the column '{twice[0]}' twice in its header, line {number:,}.",
                    "Rename one of the columns.",
                )
            indices = [row.index(key) for key in keys]
            continue
        if max(indices) >= len(row):
            raise UserError(
                f"Line {number:,} of {path} has {how_many(len(row), 'column')}: there is no column {max(indices) + 1}."
            )
        yield number, [row[index] for index in indices]


def _tsv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in enumerate(read_lines(path), 1) if line)


def csv_rows(path: str, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the last line, fields) of each row of a CSV file. Raises UserError if a row is invalid.

    With `strict`, characters between the closing quote of a field and the next comma are invalid.
    """
    before = csv.field_size_limit(_LARGEST_FIELD)
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=strict)
    first = 1
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
            first = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"Line {first:,} of {path} is not CSV: {error}.",
            "A quoted field must end with a quote, and each quote inside the field must be doubled.",
        ) from None
    finally:
        csv.field_size_limit(before)


def _json_fields(line: str, keys: Sequence[str], path: str, number: int) -> list[str]:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"Line {number:,} of {path} is not JSON: {error}.") from None
    fields = []
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            known = entry if isinstance(entry, dict) else ()
            raise UserError(f"Line {number:,} of {path} has no key '{key}'.", nearest(key, known), _KEYS_OF_COLUMNS)
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(
                f"Line {number:,} of {path}: '{key}' is {json.dumps(value)[:80]}; it must be a string or an integer."
            )
        if "\0" in str(value):
            raise UserError(f"Line {number:,} of {path}: '{key}' contains a NUL character, so it is not text.")
        try:
            fields.append(str(value).encode().decode())
        except UnicodeError:
            raise UserError(f"Line {number:,} of {path}: '{key}' is not valid Unicode: {value!r:.80}.") from None
    return fields
