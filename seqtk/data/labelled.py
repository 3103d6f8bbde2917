"""Writes labeled data-bins from text or from arrays of pixels or tokens, and prints reports about them.

A labeled data-bin is a data-bin with two more files: `classes.txt` (one class per line; the index of a class is its
line, from 0) and `SPLIT.labels.npy` (the class of each item). Pairs of texts are stored as the languages `first` and
`second`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from seqtk import __version__
from seqtk.data.corpus import find_text
from seqtk.data.encoding import append_eos
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.labelled_arrays import is_array_file
from seqtk.data.labelled_text import (
    Columns,
    check_classes,
    class_names,
    class_numbers,
    open_arrays,
    read_labelled,
)
from seqtk.data.labels import CLASSES, LABELS
from seqtk.data.preprocess import DATABIN_FILES, PreprocessConfig, check_inputs, destination_of, preprocess
from seqtk.data.report import table_lines
from seqtk.data.sources.databin import RECORD, DataBin
from seqtk.data.vocabulary import SPECIALS, Vocabulary
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_directory, write_text
from seqtk.utils.progress import Reporter

PAIR = ("first", "second")
"""The languages of a data-bin of pairs."""
SPLITS = ("train", "valid", "test")
PIXELS = tuple(map(str, range(256)))
"""The dictionary of pixels."""

_MAX_PRINTED_CLASSES = 10  # the shares of more classes than this are not printed

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One or two texts in UTF-8, without line ends, and the index of their class."""

    split: str
    label: int
    texts: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Labeled items of a split: pixels or tokens."""

    symbols: npt.NDArray[Any]
    """The concatenated symbols of the items, as indices into the list of symbols."""
    sizes: Ints
    """The number of symbols of each item."""
    labels: Ints
    """The class index of each item."""


def write_texts(
    destination: Path,
    classes: Sequence[str],
    examples: Iterable[Example],
    settings: Mapping[str, Any],
    reporter: Reporter,
    *,
    splits: Sequence[str] = SPLITS,
    recorded: PreprocessConfig | None = None,
) -> None:
    """Writes a labeled data-bin of texts atomically. `settings` are settings of seqtk-preprocess.

    `recorded` is passed to `preprocess`. Raises UserError if a split has no examples.
    """
    sides = PAIR if "target_lang" in settings else ("",)
    with _databin(destination, classes) as folder, TemporaryDirectory(dir=folder) as scratch:
        text = Path(scratch)
        labels: dict[str, list[int]] = {split: [] for split in splits}
        with ExitStack() as stack:
            files: dict[str, list[IO[bytes]]] = {
                split: [stack.enter_context(open(text / f"{split}.{side}".rstrip("."), "wb")) for side in sides]
                for split in splits
            }
            for example in examples:
                labels[example.split].append(example.label)
                for file, line in zip(files[example.split], example.texts, strict=True):
                    file.write(line + b"\n")
        config = PreprocessConfig(
            train=str(text / "train") if "train" in splits else None,
            valid=tuple(str(text / split) for split in splits if split.startswith("valid")),
            test=tuple(str(text / split) for split in splits if split.startswith("test")),
            destdir=str(folder),
            line_end="eos",
            min_length=0,
            **settings,
        )
        recorded = recorded or replace(config, train=None, valid=(), test=())
        # Only progress is reported, because messages would name the temporary files.
        preprocess(config, recorded=recorded, reporter=Reporter(progress=reporter.progress))
        data = DataBin(folder)
        for split in splits:
            label_N = np.array(labels[split], dtype=np.int64)
            parts = {part: len(data.part(part, data.source_lang)) for part in data.parts(split, data.source_lang)}
            _save_labels(folder, split, label_N, parts=parts)


def write_arrays(
    destination: Path, classes: Sequence[str], symbols: Sequence[str], splits: Mapping[str, Iterable[Arrays]]
) -> None:
    """Writes a labeled data-bin of arrays atomically. Each split consists of one or more `Arrays`.

    Raises UserError if a split has no examples.
    """
    vocabulary_size = len(SPECIALS) + len(symbols)
    counts = np.zeros(len(symbols), dtype=np.int64)
    with _databin(destination, classes) as folder:
        items: dict[str, dict[str, int]] = {}
        for split, parts in splits.items():
            labels: list[Ints] = []
            with IndexedWriter(folder / split, vocabulary_size=vocabulary_size) as writer:
                for part in parts:
                    ids = part.symbols.astype(writer.dtype) + len(SPECIALS)
                    writer.extend_arrays(*append_eos(ids, part.sizes, vocabulary_size))
                    labels.append(part.labels)
                    if split == "train":
                        counts += np.bincount(part.symbols, minlength=len(symbols))
            label_N = np.concatenate([*labels, np.zeros(0, dtype=np.int64)])
            _save_labels(folder, split, label_N, parts={split: len(label_N)})
            items[split] = {"items": writer.items}
        settings = {"tokens": "words", "remove_bpe": None}
        record = {"seqtk": __version__, "settings": settings, "splits": items, "vocabulary": {"text": vocabulary_size}}
        Vocabulary(symbols, counts.tolist()).save(folder / "dict.txt")
        write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


@contextmanager
def _databin(destination: Path, classes: Sequence[str]) -> Iterator[Path]:
    with atomic_directory(destination, only=DATABIN_FILES) as folder:
        yield folder
        write_text(folder / CLASSES, "".join(f"{name}\n" for name in classes))


def _save_labels(folder: Path, split: str, labels: Ints, *, parts: Mapping[str, int]) -> None:
    if not len(labels):
        raise UserError(f"Split '{split}' has no examples.", "Add examples, or use different files.")
    if split == "train" and labels.min() == labels.max():
        raise UserError("All training examples have the same class.", "Add examples, or use different files.")
    ends = np.cumsum(list(parts.values()))[:-1]
    for part, own in zip(parts, np.split(labels.astype(np.int32), ends), strict=True):
        np.save(folder / f"{part}{LABELS}", own)


_SEPARATE_SETTINGS = {
    *("columns", "source_lang", "target_lang", "train", "valid", "test", "destdir", "overwrite", "valid_share", "seed"),
    *("line_end", "min_length", "max_length", "max_ratio"),
}
"""Settings of seqtk-preprocess that do not apply to labeled files, or that this file handles itself."""
_ARRAY_SETTINGS = ("columns", "train", "valid", "test", "destdir", "overwrite", "valid_share", "seed", "workers")
"""Settings of seqtk-preprocess that apply to NumPy files."""


def preprocess_labelled(config: PreprocessConfig, *, reporter: Reporter | None = None) -> str:
    """Writes the labeled data-bin that `config` describes, and returns its report.

    No example is dropped. The classes are the labels in the training split or, without a training split, in all splits.

    Raises:
        UserError: If a file or setting is invalid, or an example has a class that no training example has. The folder
            is then unchanged.
    """
    columns = config.columns or Columns()
    destination = destination_of(config)
    files = _files(config)
    check_inputs(destination, map(Path, files.values()))
    arrays = {path for path in files.values() if is_array_file(path)}
    if arrays and arrays != set(files.values()):
        raise UserError(
            f"{min(arrays)} contains arrays, but {min({*files.values()} - arrays)} is text.",
            "All splits must be text, or all must be arrays.",
        )
    _check_settings(config, arrays=bool(arrays))
    class_files = [files["train"]] if "train" in files else list(files.values())
    labels = [example.label for path in class_files for example in read_labelled(path, columns, array_texts=False)]
    classes = class_names(labels)
    check_classes(classes, of=" and ".join(class_files))
    is_valid = held_out(len(labels), config.valid_share, config.seed) if config.valid_share else None
    splits = [*files, *(["valid"] if is_valid is not None else [])]
    splits.sort(key=lambda split: SPLITS.index(split.rstrip("0123456789")))
    if arrays:
        _write_array_files(
            destination, classes, {split: files.get(split, class_files[0]) for split in splits}, columns, is_valid
        )
        return describe(destination)

    def examples() -> Iterator[Example]:
        for split, path in files.items():
            for index, (example, label) in enumerate(class_numbers(read_labelled(path, columns), classes, path=path)):
                moved = split == "train" and is_valid is not None and is_valid[index]
                yield Example("valid" if moved else split, label, tuple(text.encode() for text in example.texts))

    settings = {
        field.name: getattr(config, field.name) for field in fields(config) if field.name not in _SEPARATE_SETTINGS
    }
    if columns.second is not None:
        settings |= {"source_lang": PAIR[0], "target_lang": PAIR[1]}
    write_texts(destination, classes, examples(), settings, reporter or Reporter(), splits=splits, recorded=config)
    return describe(destination)


def _files(config: PreprocessConfig) -> dict[str, str]:
    """Returns the file of each split. Raises UserError if no file is set."""
    prefixes = config.prefixes()
    if not prefixes:
        raise UserError("No labeled file is set.", "Set at least one of train=, valid= and test=.")
    return {
        split: path if is_array_file(path) else str(find_text(path, None, key=split.rstrip("0123456789")))
        for split, path in prefixes.items()
    }


def _check_settings(config: PreprocessConfig, *, arrays: bool) -> None:
    """Raises UserError if a setting has no effect on labeled files."""
    for key in ("source_lang", "target_lang", "line_end", "min_length", "max_length", "max_ratio"):
        if getattr(config, key) is not None:
            raise UserError(f"{key}= has no effect on labeled files.", "Remove it, or remove columns=.")
    for field in fields(config):
        if arrays and field.name not in _ARRAY_SETTINGS and getattr(config, field.name) != field.default:
            raise UserError(f"{field.name}= has no effect on files with arrays.", "Remove it.")
    if config.columns is not None and config.columns.second is not None and not config.joint:
        raise UserError("joint=false: both texts of a pair must have the same dictionary.", "Remove it.")
    if config.valid_share and (config.train is None or config.valid):
        raise UserError(
            "valid_share= requires train=, and cannot be combined with valid=.",
            "It moves examples of train= to the split valid. Set train=, and remove valid= or valid_share=.",
        )


def _write_array_files(
    destination: Path,
    classes: Sequence[str],
    files: Mapping[str, str],
    columns: Columns,
    is_valid: npt.NDArray[np.bool_] | None,
) -> None:
    """Writes a labeled data-bin from NumPy files. `is_valid` marks the examples of `train` that become `valid`."""
    opened = {path: open_arrays(path, columns) for path in dict.fromkeys(files.values())}
    pixels = all(file.pixels for file in opened.values())
    size = len(PIXELS) if pixels else max(file.largest() for file in opened.values()) + 1

    def parts(split: str, path: str) -> Iterator[Arrays]:
        numbers = class_numbers(read_labelled(path, columns, array_texts=False), classes, path=path)
        label_N = np.fromiter((number for _, number in numbers), np.int64)
        keep_N = np.ones(len(label_N), dtype=bool)
        if is_valid is not None and split in ("train", "valid"):
            keep_N = is_valid if split == "valid" else ~is_valid
        start = 0
        for symbols, sizes in opened[path].parts():
            part = slice(start, start + len(sizes))
            start += len(sizes)
            kept = keep_N[part]
            yield Arrays(symbols[np.repeat(kept, sizes)], sizes[kept], label_N[part][kept])

    write_arrays(destination, classes, list(map(str, range(size))), {k: parts(k, path) for k, path in files.items()})


def held_out(count: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Returns a mask of round(share × count) random examples out of `count`. It depends only on the arguments.

    Raises UserError if the mask would select no example or all examples.
    """
    chosen = round(share * count)
    if not 0 < chosen < count:
        raise UserError(
            f"valid_share={share} selects {chosen:,} of {count:,} training examples.",
            "Set valid_share so that train and valid both have examples.",
        )
    mask = np.zeros(count, dtype=bool)
    mask[np.argsort(np.random.PCG64(np.random.SeedSequence([seed])).random_raw(count), kind="stable")[:chosen]] = True
    return mask


def describe(destination: Path) -> str:
    """Returns a report of a labeled data-bin: examples, lengths and classes of each split."""
    data = DataBin(destination)
    classes = data.classes()
    rows = [["split", "examples", "shortest", "median", "90 %", "longest", "most frequent class"]]
    lines = []
    kinds = {name: name.rstrip("0123456789") for name in data.splits()}
    for split in sorted((name for name in kinds if kinds[name] in SPLITS), key=lambda name: SPLITS.index(kinds[name])):
        sides = [data.split(split, lang).sizes for lang in (data.source_lang, data.target_lang) if lang] or [
            data.split(split).sizes
        ]
        sizes = np.concatenate(sides) - 1  # without EOS
        quantiles = [f"{int(size):,}" for size in np.quantile(sizes, [0, 0.5, 0.9, 1], method="lower")]
        counts = np.bincount(data.labels(split), minlength=len(classes))
        share = counts.max() / counts.sum()
        rows.append([split, f"{counts.sum():,}", *quantiles, f"{classes[counts.argmax()]} {share:.2%}"])
        if len(classes) <= _MAX_PRINTED_CLASSES:
            named = (f"{name} {count / counts.sum():.1%}" for name, count in zip(classes, counts.tolist(), strict=True))
            lines.append(f"{split}: {', '.join(named)}")
    size = len(data.vocabulary(data.source_lang))
    note = f"lengths in tokens, without </s>; vocabulary: {size:,}, including {len(SPECIALS)} special symbols"
    return "\n".join([*table_lines(rows), note, *lines])
