"""Small labeled texts in which key words determine the class, for tests of classification and matching."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seqtk.config import schema
from seqtk.data.sources import SourceConfig, TextSource, sources
from seqtk.tasks import tasks
from seqtk.tasks.base import TaskConfig
from seqtk.tasks.classification import ClassificationTask

WORDS = [f"w{number}" for number in range(12)]


@dataclass(frozen=True)
class LabelledLinesConfig(SourceConfig):
    """A config without settings."""


class _LabelledLines(TextSource):
    """Reads `task.data/SPLIT.txt`: a class, then one or two texts, separated by tabs."""

    def read(self, split: str) -> Iterable[Sequence[str]]:
        return [line.split("\t")[1:] for line in self._file(split)]

    def classes(self) -> list[str]:
        return Path(self.name, "classes.txt").read_text().split()

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        classes = self.classes()
        return np.array([classes.index(line.split("\t")[0]) for line in self._file(split)], dtype=np.int32)

    def _file(self, split: str) -> list[str]:
        return Path(self.name, f"{split}.txt").read_text().splitlines()


@sources.register("labelled_lines", LabelledLinesConfig)
class LabelledLines(_LabelledLines):
    """A source in which each example has one text and a class."""

    sides = ("text",)


@dataclass(frozen=True)
class LabelledPairsConfig(SourceConfig):
    """A config without settings."""


@sources.register("labelled_pairs", LabelledPairsConfig)
class LabelledPairs(_LabelledLines):
    """A source in which each example has two texts, with one vocabulary, and a class."""

    sides = ("first", "second")


def write_texts(folder: Path, *, seed: int = 1, train: int = 300, test: int = 60, longest: int = 12) -> Path:
    """Writes random texts with the key word `k0` (class `yes`), `k1` (class `no`) or both (class `both`)."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("yes\nno\nboth\n")
    for split, count in (("train", train), ("valid", test), ("test", test)):
        lines = []
        for label in random.integers(3, size=count).tolist():
            words = random.choice(WORDS, size=random.integers(2, longest - 1)).tolist()
            for key in (["k0"], ["k1"], ["k0", "k1"])[label]:
                words.insert(int(random.integers(len(words) + 1)), key)
            lines.append(f"{('yes', 'no', 'both')[label]}\t{' '.join(words)}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def write_pairs(folder: Path, *, seed: int = 1, train: int = 400, test: int = 60) -> Path:
    """Writes pairs of texts. Each text has a key word. The class is `same` if the key words are equal, else `other`."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("other\nsame\n")
    for split, count in (("train", train), ("valid", test), ("test", test)):
        lines = []
        for label in random.integers(2, size=count).tolist():
            first = int(random.integers(4))
            second = first if label else int((first + random.integers(1, 4)) % 4)
            texts = []
            for key in (first, second):
                words = random.choice(WORDS, size=random.integers(2, 8)).tolist()
                words.insert(int(random.integers(len(words) + 1)), f"k{key}")
                texts.append(" ".join(words))
            lines.append("\t".join([("other", "same")[label], *texts]) + "\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def task_of(folder: Path, kind: str = "classification", **settings: object) -> ClassificationTask:
    """Returns a task that reads a folder written by `write_texts` or `write_pairs`."""
    source = "labelled_lines" if kind == "classification" else "labelled_pairs"
    tree = {"kind": kind, "data": str(folder), "source": source, **settings}
    task = tasks.build(schema.from_dict(TaskConfig, tree))
    assert isinstance(task, ClassificationTask)
    return task
