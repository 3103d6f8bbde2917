"""Labelled examples in files: texts in TSV, CSV or JSON lines, plain or compressed, and arrays of NumPy."""

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
from seqtk.utils.errors import UserError, how_many, nearest
from seqtk.utils.text_io import SUFFIXES, read_lines

TEXT_FORMATS = ("tsv", "csv", "jsonl")
ENDINGS = (
    *(f".{ending}{suffix}" for ending in TEXT_FORMATS for suffix in SUFFIXES),
    *(f".{ending}" for ending in ARRAY_FORMATS),
)
"""How the names of labelled files end."""
_KEYS_OF_COLUMNS = (
    "Set columns.text=, columns.second= and columns.label= to names, or to numbers if there is no header."
)
_BLANKS = str.maketrans("\t\r\n", "   ")
_LARGEST_FIELD = 1 << 30


@dataclass(frozen=True)
class Columns:
    """Where a file has the texts and the class. A number counts columns from 1, in a file without a header."""

    text: tuple[str, ...] = setting(
        ("text",),
        help="Name or number of the column of the text. Several are joined by spaces: [title,description]. "
        "Of an .npz file: the name of the array of pixels or tokens.",
    )
    second: str | None = setting(
        None, help="Name or number of the column of the second text of a pair. null: there are no pairs."
    )
    label: str = setting(
        "label",
        help="Name or number of the column of the class. Of an .npz file: the name of the array of classes. "
        "NAME.npy has its classes in NAME.label.npy.",
    )
    lengths: str | None = setting(
        None,
        help="Of .npz and .npy files: the array of lengths of items that are padded or stand one after another.",
    )
    classes: tuple[str, ...] = setting(
        (),
        help="The class that each value of the column of the class stands for: [VALUE:CLASS,...], "
        "as in [1:World,2:Sports]. []: the value is the class.",
    )


@dataclass(frozen=True)
class LabelledText:
    """One example."""

    line: int
    """The number of its (last) line in a text file, or of the item of an array, from 1."""
    texts: tuple[str, ...]
    """One text, or two, each without line ends."""
    label: str


def place_of(line: int, path: str) -> str:
    """Names an example in an error: the line of a text file, or the item of an array."""
    return f"{'Example' if is_array_file(path) else 'Line'} {line:,} of {path}"


def read_labelled(path: str, columns: Columns) -> Iterator[LabelledText]:
    """Yields the examples of a file. Its format is its ending, before that of a compression; TSV for any other.

    TSV has no quotes. CSV is that of RFC 4180: quoted fields may hold commas, quotes and line ends, which become
    blanks. The text of an array is its symbols, separated by blanks.

    Raises:
        UserError: For a file that is missing or empty, a column that it does not have, and a class that is empty or
            not in `columns.classes`.
    """
    class_of = _class_of(path, columns)
    if is_array_file(path):
        array = open_arrays(path, columns)
        texts = (
            (" ".join(map(str, item.tolist())),)
            for symbols, sizes in array.parts()
            for item in np.split(symbols, np.cumsum(sizes)[:-1])
        )
        for number, (text, label) in enumerate(zip(texts, array.labels(), strict=True), 1):
            yield LabelledText(number, text, class_of(label, number))
        return
    if columns.lengths is not None:
        raise UserError(f"columns.lengths={columns.lengths} is for .npz and .npy files, but {path} is text.")
    keys = [*columns.text, *([columns.second] if columns.second is not None else []), columns.label]
    parts, found = len(columns.text), False
    for number, fields in _records(path, keys):
        found = True
        *fields, label = (field.translate(_BLANKS) for field in fields)
        yield LabelledText(number, (" ".join(fields[:parts]), *fields[parts:]), class_of(label.strip(), number))
    if not found:
        raise UserError(f"{path} has no examples.")


def read_labels(path: str, columns: Columns) -> Iterator[LabelledText]:
    """Yields the examples of a file, of an array without their texts. Raises UserError as `read_labelled`."""
    if not is_array_file(path):
        yield from read_labelled(path, columns)
        return
    class_of = _class_of(path, columns)
    for number, label in enumerate(open_arrays(path, columns).labels(), 1):
        yield LabelledText(number, (), class_of(label, number))


def open_arrays(path: str, columns: Columns) -> ArrayFile:
    """Opens a file of NumPy. Raises UserError for one that cannot be used, and for columns that only text has."""
    if columns.second is not None:
        raise UserError(f"columns.second={columns.second}: {path} has no pairs.", "Pairs are read from text.")
    if len(columns.text) != 1 or (path.endswith(".npy") and columns.text != Columns.text):
        named = ",".join(columns.text)
        raise UserError(f"columns.text=[{named}]: an .npz file has one array of items.", "An .npy file has no names.")
    return ArrayFile(path, items=columns.text[0], labels=columns.label, lengths=columns.lengths)


def _class_of(path: str, columns: Columns) -> Callable[[str, int], str]:
    """Returns a function from a value of the label column and its line to the class."""
    pairs = [entry.partition(":") for entry in columns.classes]
    for entry, (value, colon, name) in zip(columns.classes, pairs, strict=True):
        if not (value.strip() and colon and name.strip()):
            raise UserError(
                f"columns.classes has '{entry}', which is not VALUE:CLASS.", "For example [1:World,2:Sports]."
            )
    named = {value.strip(): name.strip() for value, _, name in pairs}
    if len(named) < len(pairs):
        raise UserError(f"columns.classes=[{','.join(columns.classes)}] names a value twice.")

    def class_of(label: str, line: int) -> str:
        if not label:
            raise UserError(f"{place_of(line, path)} has no class: the column '{columns.label}' is empty.")
        if named and label not in named:
            raise UserError(
                f"{place_of(line, path)} has the class '{label}', which columns.classes does not have.",
                nearest(label, named),
            )
        return named.get(label, label)

    return class_of


def class_names(labels: Iterable[str]) -> list[str]:
    """Returns the classes among labels in their order: by value if all are whole numbers, else by code points."""
    names = set(labels)
    numeric = all(re.fullmatch(r"-?[0-9]+", name) for name in names)
    return sorted(names, key=lambda name: (int(name) if numeric else 0, name))


def check_classes(classes: Sequence[str], *, of: str) -> None:
    """Raises UserError unless there are two classes or more, all different. `of` says where they are from."""
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(f"{of} names the class '{twice}' twice.")
    if not any(classes):
        raise UserError(f"{of} has no classes.", "A classifier needs two or more.")
    if len(classes) < 2:
        raise UserError(f"All examples of {of} have one class: '{classes[0]}'.", "A classifier needs two or more.")


def class_numbers(
    examples: Iterable[LabelledText], classes: Sequence[str], *, path: str
) -> Iterator[tuple[LabelledText, int]]:
    """Yields each example with the number of its class, from 0.

    Raises:
        UserError: With the line, for a class that is not among `classes`, those of the training examples.
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
    """`tsv`, `csv` or `jsonl`."""
    name = Path(path)
    suffix = Path(name.stem).suffix if name.suffix in SUFFIXES else name.suffix
    return suffix.removeprefix(".") if suffix.removeprefix(".") in TEXT_FORMATS else "tsv"


def _records(path: str, keys: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of a line with the fields that `keys` name."""
    if format_of(path) == "jsonl":
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield number, _of_json(line, keys, path, number)
        return
    rows = _csv_rows(path) if format_of(path) == "csv" else _tsv_rows(path)
    places = [int(key) - 1 for key in keys] if all(key.isdecimal() and int(key) > 0 for key in keys) else None
    width = None
    for number, row in rows:
        if width is not None and len(row) != width:
            raise UserError(f"Line {number:,} of {path} has {how_many(len(row), 'column')}, its header has {width}.")
        if places is None:
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
                    "Rename one of them.",
                )
            places = [row.index(key) for key in keys]
            continue
        if max(places) >= len(row):
            raise UserError(
                f"Line {number:,} of {path} has {how_many(len(row), 'column')}, but column {max(places) + 1} is needed."
            )
        yield number, [row[place] for place in places]


def _tsv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in enumerate(read_lines(path), 1) if line)


def _csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    before = csv.field_size_limit(_LARGEST_FIELD)
    reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True)
    first = 1
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
            first = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"Line {first:,} of {path} is not CSV: {error}.",
            "A field that begins with a quote ends with one, and each quote inside it is doubled.",
        ) from None
    finally:
        csv.field_size_limit(before)


def _of_json(line: str, keys: Sequence[str], path: str, number: int) -> list[str]:
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
                f"Line {number:,} of {path}: '{key}' is {json.dumps(value)[:80]}, not a text or a whole number."
            )
        fields.append(str(value))
    return fields
