"""Writes data-bins of generated or official examples: `seqtk-prepare listops`, `lra_pathfinder`, `lra_pathx`."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.corpora.images import read_png, sheet, write_png
from seqtk.corpora.local import find_text, missing_file
from seqtk.corpora.lra import listops, pathfinder
from seqtk.corpora.lra.listops import Expressions, ListOpsShape
from seqtk.corpora.lra.pathfinder import PathfinderShape
from seqtk.data.labelled import PIXELS, SPLITS, Arrays, Ints, describe, write_arrays
from seqtk.data.preprocess import check_destination
from seqtk.data.workers import available_cores, ordered_map
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file, check_writable
from seqtk.utils.progress import Reporter
from seqtk.utils.text_io import read_lines

_LEVELS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
_PART = 1000  # items that are written together
_SHEET = 16
_WORTH_EXPRESSIONS, _WORTH_IMAGES = 20_000, {16: 8_000, 32: 4_000, 128: 200}
_RECIPES = {16: "mini_pathfinder", 32: "lra_pathfinder_small", 128: "lra_pathx_s4"}
_SAME_PATH = ("different paths", "one path")


@dataclass(frozen=True)
class _Output:
    """Settings of a generated data set: its folder and size."""

    source: str | None = setting(None, help="Folder with the official files to read. null: generate examples.")
    destdir: str | None = setting(None, help="Data-bin folder to write. null: the folder that the recipes read.")
    overwrite: bool = setting(False, help="Replace an existing data-bin in destdir.")
    workers: int = setting(0, at_least=0, help="Number of worker processes. 0: one per core.")
    seed: int = setting(1, at_least=0, help="Seed of the random examples.")
    train: int = setting(96_000, at_least=1, at_most=10**8, help="Number of examples in the training set.")
    valid: int = setting(2_000, at_least=1, at_most=10**8, help="Number of examples in the validation set.")
    test: int = setting(2_000, at_least=1, at_most=10**8, help="Number of examples in the test set.")


@dataclass(frozen=True)
class ListOpsConfig(ListOpsShape, _Output):
    """Settings of ListOps. The defaults are the settings of the Long Range Arena."""


@dataclass(frozen=True)
class MiniListOpsConfig(ListOpsConfig):
    """Settings of ListOps with short expressions, to compare models in minutes."""

    max_depth: int = 6
    max_args: int = 5
    min_length: int = 20
    max_length: int = 100

    @property
    def recipe(self) -> str | None:
        """The recipe for expressions of more than 128 tokens, or None for shorter expressions (see `LabelledSet`)."""
        return "lra_listops_small" if self.max_length > 129 else None


@dataclass(frozen=True)
class PathfinderConfig(PathfinderShape, _Output):
    """Settings of Pathfinder. The defaults are the hard images of the Long Range Arena."""

    train: int = 160_000
    valid: int = 20_000
    test: int = 20_000
    sheet: str | None = setting(None, help="PNG file to write, with 8 training images of each class.")

    @property
    def recipe(self) -> str:
        """The recipe for images of this size (see `LabelledSet`)."""
        return _RECIPES[self.size]


@dataclass(frozen=True)
class MiniPathfinderConfig(PathfinderConfig):
    """Settings of Pathfinder with small images and short paths, to compare models in minutes."""

    size: int = 16
    contour_length: int = 3
    train: int = 100_000
    valid: int = 2_000
    test: int = 2_000


@dataclass(frozen=True)
class PathXConfig(PathfinderConfig):
    """Settings of Path-X: Pathfinder with images of 128 x 128 pixels."""

    size: int = 128


def prepare_listops(config: ListOpsConfig, destination: Path, *, reporter: Reporter) -> str:
    """Writes the data-bin of ListOps, and returns a report. Raises UserError if no expression fits the settings."""
    check_destination(destination, overwrite=config.overwrite)
    started = time.perf_counter()
    if config.source:
        splits = {split: _official_listops(Path(config.source).expanduser(), split) for split in SPLITS}
        speed = "read from the official files"
    else:
        sizes = [config.train, config.valid, config.test]
        workers = _workers(config, sum(sizes), worth=_WORTH_EXPRESSIONS)
        every = listops.generate(config, sum(sizes), seed=config.seed, workers=workers, reporter=reporter)
        ends = np.cumsum(sizes).tolist()
        splits = {
            split: every.take(range(end - size, end)) for split, size, end in zip(SPLITS, sizes, ends, strict=True)
        }
        speed = f"generated with seed {config.seed}, {_rate(sum(sizes), started, 'expressions')}"
    write_arrays(
        destination,
        tuple(map(str, range(10))),
        listops.TOKENS,
        {split: _as_arrays(part) for split, part in splits.items()},
    )
    lookup = listops.root_lookup(splits["train"], splits["test"])
    usual = np.bincount(splits["train"].values_K).argmax()
    majority = np.mean(splits["test"].values_K == usual)
    baselines = f"test accuracy of baselines: most frequent class ({usual}) {majority:.1%}, root operator {lookup:.1%}"
    return f"{describe(destination)}\n{baselines}\n{speed}"


def _as_arrays(every: Expressions) -> Iterator[Arrays]:
    for start in range(0, len(every.codes), _PART):
        codes = every.codes[start : start + _PART]
        sizes = np.array([len(each) for each in codes])
        yield Arrays(np.concatenate(codes), sizes, every.values_K[start : start + _PART])


def _official_listops(folder: Path, split: str) -> Expressions:
    """Returns the expressions in `basic_train.tsv`, `basic_val.tsv` or `basic_test.tsv`."""
    name = f"basic_{'val' if split == 'valid' else split}.tsv"
    path = find_text([folder], name)
    if path is None:
        raise missing_file([folder], name)
    codes = {token: code for code, token in enumerate(listops.TOKENS)}
    expressions, values = [], []
    for tokens, value in listops.read_official(read_lines(str(path)), str(path)):
        expressions.append(np.array([codes[token] for token in tokens], dtype=np.uint8))
        values.append(int(value))
    if not expressions:
        raise UserError(f"{path} has no expressions.", "Use a different source=.")
    return Expressions(expressions, np.array(values))


def prepare_pathfinder(config: PathfinderConfig, destination: Path, *, reporter: Reporter) -> str:
    """Writes the data-bin of Pathfinder, and returns a report. Raises UserError if no image fits the settings."""
    check_destination(destination, overwrite=config.overwrite)
    config.check()
    if config.sheet:
        if not config.sheet.endswith(".png"):
            raise UserError(f"sheet={config.sheet}: must end in .png, because the file is a PNG image.")
        check_writable(Path(config.sheet).parent, key="sheet")
    started = time.perf_counter()
    statistics = _PixelStatistics()
    distances: dict[str, list[tuple[Ints, Ints]]] = {split: [] for split in SPLITS}
    if config.source:
        splits = _official_pathfinder(config, reporter)
    else:
        splits = {split: _generated(config, split, distances[split], reporter) for split in SPLITS}
    write_arrays(
        destination,
        _SAME_PATH,
        PIXELS,
        {name: map(statistics.add, part) for name, part in splits.items()},
    )
    if config.sheet:
        with atomic_file(config.sheet) as file:
            file.write(write_png(statistics.sheet()))
    how = f"read from the official files, {_rate(statistics.images, started, 'images')}"
    if not config.source:
        train, test = (
            [np.concatenate(part) for part in zip(*distances[split], strict=True)] for split in ("train", "test")
        )
        lookup = pathfinder.distance_lookup(train, test)
        how = f"generated with seed {config.seed}, {_rate(statistics.images, started, 'images')}"
        how = f"test accuracy of the baseline that uses only the distance between the dots: {lookup:.1%}\n{how}"
    return f"{describe(destination)}\n{statistics}\n{how}"


Part = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


class _PixelStatistics:
    """Collects statistics of the pixels of images, and keeps a few images of each class."""

    def __init__(self) -> None:
        self.images = 0
        self._sum = 0
        self._above = np.zeros(3, dtype=np.int64)
        self._pixels = 0
        self._kept: tuple[list[Any], list[Any]] = ([], [])

    def add(self, part: Part) -> Arrays:
        """Adds images and labels to the statistics, and returns them as `Arrays`."""
        images, labels = part
        self.images += len(images)
        self._pixels += images.size
        self._sum += int(images.sum(dtype=np.int64))
        self._above += [np.count_nonzero(images > least) for least in (0, 64, 127)]
        for label, kept in enumerate(self._kept):
            kept.extend(images[labels == label][: _SHEET // 2 - len(kept)])
        return Arrays(images.ravel(), np.full(len(images), images.shape[1] * images.shape[2]), labels)

    def sheet(self) -> npt.NDArray[np.uint8]:
        """Returns an image with two rows: eight images with label 1, then eight with label 0, scaled by 2.

        Missing images are white.
        """
        columns = _SHEET // 2
        white = np.full_like((self._kept[0] + self._kept[1])[0], 255)
        images = np.stack([image for kept in reversed(self._kept) for image in (kept + [white] * columns)[:columns]])
        return sheet(images.repeat(2, axis=1).repeat(2, axis=2), columns=columns)

    def __str__(self) -> str:
        shares = ", ".join(
            f"{share:.1%} > {least}" for share, least in zip(self._above / self._pixels, (0, 64, 127), strict=True)
        )
        return f"pixel values: mean {self._sum / self._pixels:.2f}, {shares}"


def _generated(
    config: PathfinderConfig, split: str, distances: list[tuple[Ints, Ints]], reporter: Reporter
) -> Iterator[Part]:
    """Yields the images of a split. Appends the distances between the dots, and the labels, to `distances`."""
    total = getattr(config, split)
    workers = _workers(config, total, worth=_WORTH_IMAGES[config.size])
    stream = SPLITS.index(split)
    for part in pathfinder.generate(config, total, seed=config.seed, stream=stream, workers=workers, reporter=reporter):
        distances.append((part.distances, part.labels))
        yield part.images, part.labels


def _official_pathfinder(config: PathfinderConfig, reporter: Reporter) -> Mapping[str, Iterator[Part]]:
    """Returns the images of each split at one level of difficulty: 80 % train, 10 % valid, 10 % test.

    The random order of the images follows S4's code (seed 42).
    """
    import torch  # imported here, because it takes 2 s and only this function uses it

    if config.contour_length not in _LEVELS:
        raise UserError(f"contour_length={config.contour_length}: the official archive has only 6, 9 and 14.")
    level = f"pathfinder{config.size}/{_LEVELS[config.contour_length]}"
    given = Path(config.source or "").expanduser()
    folders = [given / level, given, *given.glob(f"*/{level}"), *given.glob(f"*/*/{level}")]
    folder = next((path for path in folders if (path / "metadata").is_dir()), None)
    if folder is None:
        raise UserError(
            f"There is no folder {level}/metadata in source={given}.",
            f"Unpack lra_release.gz, and set source= to the folder that contains pathfinder{config.size}.",
        )
    rows = [row for path in _batches(folder) for row in _metadata(path)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    cuts = [0, int(0.8 * len(rows)), int(0.8 * len(rows)) + int(0.1 * len(rows)), len(rows)]
    workers = _workers(config, len(rows), worth=_PART)

    def read(chosen: list[int]) -> Iterator[Part]:
        parts = ([rows[index] for index in chosen[at : at + _PART]] for at in range(0, len(chosen), _PART))
        items = ((folder, config.size, part) for part in parts)
        with reporter.bar(len(chosen), f"reading {level}", unit="") as bar:
            for part in ordered_map(_read_images, items, workers=workers):
                bar.update(len(part[1]))
                yield part

    return {split: read(order[start:end]) for split, start, end in zip(SPLITS, cuts, cuts[1:], strict=False)}


def _batches(folder: Path) -> list[Path]:
    """Returns the files that list the images, in the order of their numbers: `metadata/0.npy`, …"""
    paths = [path for path in (folder / "metadata").glob("*.npy") if path.stem.isdigit()]
    if not paths:
        raise UserError(f"{folder / 'metadata'} has no list of images, such as 0.npy.", "Use a different source=.")
    return sorted(paths, key=lambda path: int(path.stem))


def _metadata(path: Path) -> list[tuple[str, int]]:
    """Returns (image file, label) of each line of a list of images.

    A list is text, as in the official archive, or a NumPy array of strings. Raises UserError if it is an array of
    objects, which would have to be unpickled.
    """
    content = path.read_bytes()
    try:
        if content.startswith(b"\x93NUMPY"):
            lines = [[str(cell) for cell in row] for row in np.load(path, allow_pickle=False)]
        else:
            lines = [line.split() for line in content.decode().splitlines()]
        rows = [(f"{line[0]}/{line[1]}", int(float(line[3]))) for line in lines if line]
    except (ValueError, IndexError, TypeError):
        raise UserError(
            f"{path} is not a list of images: each line must have folder, name, number and label.",
            "An array of Python objects is not read, because it would have to be unpickled.",
        ) from None
    if any(label not in (0, 1) or name.startswith("/") or ".." in name.split("/") for name, label in rows):
        raise UserError(
            f"{path} lists images outside its folder, or labels other than 0 and 1.", "Use a different source=."
        )
    return rows


def _read_images(folder: Path, size: int, rows: list[tuple[str, int]]) -> Part:
    """Returns the images and labels of `rows`. Skips empty files (the official archive has one)."""
    images, labels = [], []
    for name, label in rows:
        path = folder / name
        if not path.is_file():
            raise UserError(f"There is no image {path}.", "The archive is not completely unpacked.")
        content = path.read_bytes()
        if not content:
            continue
        image = read_png(content, str(path))
        if image.shape != (size, size):
            raise UserError(f"{path} has {image.shape[1]} x {image.shape[0]} pixels, not {size} x {size}.")
        images.append(image)
        labels.append(label)
    return np.array(images, dtype=np.uint8).reshape(-1, size, size), np.array(labels, dtype=np.int64)


def _workers(config: _Output, items: int, *, worth: int) -> int:
    """Returns the number of processes to use. Starting a process takes as long as processing `worth` items."""
    return min(config.workers or available_cores(), max(1, items // worth))


def _rate(count: int, started: float, what: str) -> str:
    seconds = time.perf_counter() - started
    return f"{count:,} {what} in {seconds:.0f} s, {count / seconds:,.0f} per second"
