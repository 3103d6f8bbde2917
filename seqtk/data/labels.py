"""Reads the labels of a labeled data-bin: the names of the classes, and the class of each item of a split.

N items.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from seqtk.data.labelled_text import check_classes
from seqtk.utils.errors import UserError
from seqtk.utils.text_io import read_lines

CLASSES, LABELS = "classes.txt", ".labels.npy"


def read_classes(directory: Path) -> list[str]:
    """Returns the names of the classes, the lines of `classes.txt`. Raises UserError if there are no classes."""
    path = directory / CLASSES
    if not path.is_file():
        raise UserError(f"{directory} has no labels: there is no {CLASSES}.", "task=classification requires labels.")
    classes = list(read_lines(str(path)))
    check_classes(classes, of=str(path))
    return classes


def read_labels(directory: Path, split: str, *, items: int, classes: int) -> npt.NDArray[np.int32]:
    """Returns label_N, the class of each item of a split.

    Args:
        directory: The data-bin.
        split: The name of the split.
        items: The number of items in the split.
        classes: The number of classes.

    Raises:
        UserError: If there are no labels, or they do not match the items and the classes.
    """
    path = directory / f"{split}{LABELS}"
    if not path.is_file():
        raise UserError(f"{directory} has no labels for split '{split}': there is no {path.name}.")
    try:
        label_N: npt.NDArray[np.int32] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise UserError(f"{path} is not a valid array of labels.", "Make the data-bin again.") from None
    problem = ""
    if label_N.ndim != 1 or label_N.dtype.kind not in "iu":
        problem = f"{path} must be a 1-dimensional array of integers, but has {label_N.ndim} axes of {label_N.dtype}."
    elif len(label_N) != items:
        problem = f"{path} has {len(label_N):,} labels, but split '{split}' has {items:,} examples."
    elif items and not 0 <= int(label_N.min()) <= int(label_N.max()) < classes:
        wrong = int(np.flatnonzero((label_N < 0) | (label_N >= classes))[0])
        problem = f"Label {wrong + 1:,} of {path} is {label_N[wrong]}, but must be from 0 to {classes - 1}."
    if problem:
        raise UserError(problem, "Make the data-bin again.")
    return label_N
