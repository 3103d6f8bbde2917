"""From labelled files to a labelled data-bin: texts, their classes, and the names of the classes."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from seqtk.data.corpus import find_text
from seqtk.data.labelled_text import Columns, LabelledText, class_names, read_labelled
from seqtk.data.preprocess import DATABIN_FILES, PreprocessConfig, check_destination, preprocess, write_record
from seqtk.data.report import PreprocessReport
from seqtk.data.sources.databin import CLASSES, LABELS
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_directory, write_text
from seqtk.utils.progress import Reporter

FILES = (*DATABIN_FILES, CLASSES, f"*{LABELS}")
PAIR = ("first", "second")
"""The languages of a data-bin of pairs."""


def preprocess_labelled(config: PreprocessConfig, *, reporter: Reporter | None = None) -> PreprocessReport:
    """Makes the labelled data-bin that `config`, which has columns, describes, and returns the counts of its texts.

    No example is dropped. The classes are those of the training split, or of all splits if there is none.

    Raises:
        UserError: For files or settings that cannot be used, and for a class that no training example has; the folder
            is then as it was before.
    """
    assert config.columns is not None
    for key in ("source_lang", "target_lang", "min_length", "max_length", "max_ratio"):
        if getattr(config, key) is not None:
            raise UserError(f"{key}= is not for labelled files.", "Remove it, or remove columns=.")
    if config.destdir is None:
        raise UserError("destdir= is missing.", "Set it to the data-bin folder to make.")
    destination = Path(config.destdir)
    check_destination(destination, overwrite=config.overwrite)
    paths = {split: find_text(prefix, None, key="a split") for split, prefix in config.prefixes().items()}
    if not paths:
        raise UserError("There is no text: train=, valid= and test= are not set.", "Set at least one of them.")
    sides = ("",) if config.columns.second is None else PAIR
    with atomic_directory(destination, only=FILES) as folder, tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch)
        labels = {split: _write_texts(text, split, str(path), config.columns, sides) for split, path in paths.items()}
        own = labels["train"] if "train" in labels else [label for each in labels.values() for label in each]
        number = {name: index for index, name in enumerate(class_names(own))}
        for split, path in paths.items():
            _check_known(labels[split], number, path=str(path), columns=config.columns)
        plain = replace(
            config,
            columns=None,
            source_lang=sides[0] or None,
            target_lang=sides[1] if len(sides) == 2 else None,
            train=str(text / "train") if "train" in labels else None,
            valid=tuple(str(text / split) for split in labels if split.startswith("valid")),
            test=tuple(str(text / split) for split in labels if split.startswith("test")),
            line_end="eos",
            min_length=0,
            destdir=str(folder),
        )
        report = preprocess(plain, reporter=reporter)
        write_record(folder, config, report)  # in place of the temporary files
        write_text(folder / CLASSES, "".join(f"{name}\n" for name in number))
        for split, each in labels.items():
            np.save(folder / f"{split}{LABELS}", np.array([number[label] for label in each], dtype=np.int32))
    return report


def _write_texts(folder: Path, split: str, path: str, columns: Columns, sides: tuple[str, ...]) -> list[str]:
    """Writes the texts of a file, one a line, to `split` or to `split.first` and `split.second`; returns classes."""
    labels = []
    with ExitStack() as stack:
        names = [f"{split}.{side}" if side else split for side in sides]
        files = [stack.enter_context(open(folder / name, "w", encoding="utf-8", newline="\n")) for name in names]
        for example in read_labelled(path, columns):
            labels.append(example.label)
            for file, line in zip(files, example.texts, strict=True):
                file.write(f"{line}\n")
    return labels


def _check_known(labels: list[str], known: dict[str, int], *, path: str, columns: Columns) -> None:
    """Raises UserError, with the line, for a class that no training example has."""
    if all(label in known for label in set(labels)):
        return
    first: LabelledText = next(example for example in read_labelled(path, columns) if example.label not in known)
    raise UserError(
        f"Line {first.line:,} of {path} has the class '{first.label}', which no training example has.",
        f"The training examples have: {', '.join(list(known)[:10])}.",
    )
