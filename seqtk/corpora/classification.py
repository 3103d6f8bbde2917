"""Corpora with classes: IMDB, AG News, CIFAR-10 in gray, and the pairs of articles in the Long Range Arena.

The checksums are from torchtext (IMDB, AG News) and from the web page of CIFAR-10. If a corpus has no validation set, a
share of the training set becomes the validation set. Test sets are as published.
"""

import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.corpora.download import RetryPolicy
from seqtk.corpora.images import gray, read_binary_batch, read_npz, read_pickled_batch
from seqtk.corpora.local import find_named, find_text, missing_file
from seqtk.corpora.prepare import FilesConfig, fetch_all, list_sources
from seqtk.corpora.spec import RemoteFile
from seqtk.corpora.unpack import damaged_archive_errors
from seqtk.data.labelled import (
    PAIR,
    PIXELS,
    SPLITS,
    Arrays,
    Example,
    describe,
    held_out,
    write_arrays,
    write_texts,
)
from seqtk.data.labelled_text import csv_rows
from seqtk.data.preprocess import check_destination
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from seqtk.utils.text_io import check_utf8, read_lines

_BLANKS = bytes.maketrans(b"\t\r\n", b"   ")
_MOST_BYTES = 10_000  # longer articles are truncated


@dataclass(frozen=True)
class HeldOutConfig(FilesConfig):
    """Settings of a corpus that has no published validation set."""

    valid_share: float = setting(
        0.1,
        at_least=0,
        below=1,
        help="The share of the training set that becomes the validation set. 0: no validation set. Then train with "
        "validation.split=null.",
    )
    seed: int = setting(1, at_least=0, help="Seed of the choice of validation examples.")


@dataclass(frozen=True)
class TextConfig(HeldOutConfig):
    """Settings of a corpus of texts: the location of its files, and its tokens."""

    tokens: Literal["lowercase_words", "sentencepiece"] = setting(
        "lowercase_words",
        help="Kind of tokens: words in lower case without punctuation (words that occur once are unknown), or "
        "SentencePiece pieces.",
    )
    vocab_size: int = setting(30_000, at_least=8, at_most=10_000_000, help="Maximum size of the vocabulary.")


@dataclass(frozen=True)
class LabelledCorpus:
    """A corpus with classes.

    Attributes:
        read: The function that reads the examples, given the files and `counts`.
        files: The files to download if source= is not set. Empty if the corpus cannot be downloaded.
        counts: The published number of examples of each split.
        tokens: "bytes" or "pixels". None: the setting `tokens` selects them.
        pair: True if an example is a pair of texts.
    """

    name: str
    about: str
    recipe: str
    classes: tuple[str, ...]
    read: Callable[[Sequence[Path], Mapping[str, int]], Any]
    files: tuple[RemoteFile, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    tokens: Literal["bytes", "pixels"] | None = None
    pair: bool = False

    @property
    def config(self) -> type[FilesConfig]:
        """The class of the settings of this corpus."""
        return FilesConfig if self.pair else HeldOutConfig if self.tokens else TextConfig


def prepare_labelled(
    config: FilesConfig,
    destination: Path,
    *,
    corpus: LabelledCorpus,
    reporter: Reporter,
    retry: RetryPolicy | None = None,
) -> str:
    """Writes the labeled data-bin of `corpus`, and returns a report. Raises UserError if a file is invalid."""
    check_destination(destination, overwrite=config.overwrite)
    places = list_sources(config)
    if not places:
        if not corpus.files:
            raise UserError(
                f"{corpus.name} cannot be downloaded.", "Set source=FOLDER. docs/corpora.md lists the files."
            )
        places = list(fetch_all(corpus.files, config, reporter=reporter, retry=retry).values())
    data = corpus.read(places, corpus.counts)
    if corpus.tokens == "pixels":
        assert isinstance(config, HeldOutConfig)
        write_arrays(destination, corpus.classes, PIXELS, {k: [v] for k, v in _split_pixels(data, config).items()})
    else:
        settings: dict[str, Any] = {"tokens": "bytes", "workers": config.workers}
        if corpus.pair:
            settings |= {"source_lang": PAIR[0], "target_lang": PAIR[1]}
        elif isinstance(config, TextConfig):
            words = config.tokens == "lowercase_words"
            settings |= {"tokens": config.tokens}
            settings |= {"threshold": 2, "nwords": config.vocab_size} if words else {"vocab_size": config.vocab_size}
        splits: Sequence[str] = SPLITS
        if isinstance(config, HeldOutConfig):
            data = _split_texts(data, config)
            splits = SPLITS if config.valid_share else ("train", "test")
        write_texts(destination, corpus.classes, data, settings, reporter, splits=splits)
    return describe(destination)


Texts = Mapping[str, list[tuple[int, bytes]]]
Pixels = Mapping[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]


def _split_texts(data: Texts, config: HeldOutConfig) -> Iterator[Example]:
    """Yields the examples of `train` and `test`. Moves a share of `train` to the split `valid`."""
    validates = _validation_mask(len(data["train"]), config).tolist()
    for split, examples in data.items():
        for index, (label, text) in enumerate(examples):
            name = "valid" if split == "train" and validates[index] else split
            yield Example(name, label, (text,))


def _split_pixels(data: Pixels, config: HeldOutConfig) -> dict[str, Arrays]:
    """Returns the images of `train` and `test`. Moves a share of `train` to the split `valid`."""
    validates = _validation_mask(len(data["train"][1]), config)

    def arrays(split: str, mask: Any) -> Arrays:
        pixels, labels = data[split][0][mask], data[split][1][mask]
        return Arrays(pixels.ravel(), np.full(len(pixels), pixels.shape[1]), labels)

    valid = {"valid": arrays("train", validates)} if validates.any() else {}
    return {"train": arrays("train", ~validates), **valid, "test": arrays("test", slice(None))}


def _validation_mask(count: int, config: HeldOutConfig) -> npt.NDArray[np.bool_]:
    return held_out(count, config.valid_share, config.seed) if config.valid_share else np.zeros(count, dtype=bool)


def _check_count(found: int, published: int | None, what: str) -> None:
    if published not in (None, found):
        raise UserError(f"Found {found:,} {what}, but {published:,} are published.", "Use a different source=.")


def _clean(text: bytes, name: str) -> bytes:
    """Returns a text as one line: spaces replace line breaks. Raises UserError unless it is UTF-8."""
    check_utf8(text, name, 1)
    return text.translate(_BLANKS).strip()


_REVIEW = re.compile(r"(?:.*/)?(train|test)/(neg|pos)/(\d+)_\d+\.txt")


def read_imdb(places: Sequence[Path], counts: Mapping[str, int]) -> Texts:
    """Returns the reviews in the archive, its unpacked folders, or two TSV files, sorted by class and number."""
    reviews: dict[str, list[tuple[int, int, bytes]]] = {"train": [], "test": []}
    archive, tables = find_named(places, "aclImdb_v1.tar.gz"), [find_text(places, f"{split}.tsv") for split in reviews]
    if archive is not None:
        found = _archived_reviews(archive)
    elif None not in tables:
        found = _tabled_reviews(dict(zip(reviews, tables, strict=True)))
    else:
        found = _reviews_in_folders(places)
    for split, label, number, text in found:
        reviews[split].append((label, number, text))
    if not all(reviews.values()):
        raise missing_file(places, "aclImdb_v1.tar.gz, aclImdb/train/pos/*.txt …, or train.tsv and test.tsv")
    for split, rows in reviews.items():
        _check_count(len(rows), counts.get(split), f"reviews for {split}")
    return {split: [(label, text) for label, _, text in sorted(rows)] for split, rows in reviews.items()}


def _review(name: str) -> tuple[str, int, int] | None:
    match = _REVIEW.fullmatch(name)
    return (match[1], ("neg", "pos").index(match[2]), int(match[3])) if match else None


def _archived_reviews(archive: Path) -> Iterator[tuple[str, int, int, bytes]]:
    with damaged_archive_errors(archive), tarfile.open(archive) as opened:
        for info in opened:
            found, file = _review(info.name), opened.extractfile(info) if info.isreg() else None
            if found and file:
                yield *found, _clean(file.read(), f"{info.name} in {archive}")


def _reviews_in_folders(places: Sequence[Path]) -> Iterator[tuple[str, int, int, bytes]]:
    for place in places:
        for pattern in ("*/*/*.txt", "*/*/*/*.txt"):
            for path in place.glob(pattern):
                if found := _review(path.relative_to(place).as_posix()):
                    yield *found, _clean(path.read_bytes(), str(path))


def _tabled_reviews(tables: Mapping[str, Path | None]) -> Iterator[tuple[str, int, int, bytes]]:
    for split, path in tables.items():
        for number, line in enumerate(read_lines(str(path)), start=1):
            label, _, rest = line.partition("\t")
            name, tab, text = rest.partition("\t")
            if label not in ("0", "1") or not tab or not name.partition("_")[0].isdigit():
                raise UserError(
                    f"Line {number} of {path} must have label, id and text, separated by tabs, but is:", repr(line[:60])
                )
            yield split, int(label), int(name.partition("_")[0]), _clean(text.encode(), str(path))


def read_ag_news(places: Sequence[Path], counts: Mapping[str, int]) -> Texts:
    """Reads the label, from 0, and the text of each article of AG News from `train.csv` and `test.csv`.

    The columns of these files are class (1 to 4), title and description, or text and class (0 to 3). `train5k.csv` is
    read if there is no `train.csv`.
    """
    files = {"train": find_text(places, "train.csv") or find_text(places, "train5k.csv")}
    files["test"] = find_text(places, "test.csv")
    news: dict[str, list[tuple[int, bytes]]] = {}
    for split, path in files.items():
        if path is None:
            raise missing_file(places, f"{split}.csv")
        news[split] = [_article(row, path, number) for number, row in csv_rows(str(path), strict=False)]
        if not path.name.startswith("train5k"):
            _check_count(len(news[split]), counts.get(split), f"articles in {path}")
    return news


def _article(row: list[str], path: Path, number: int) -> tuple[int, bytes]:
    if len(row) == 3 and row[0] in ("1", "2", "3", "4"):
        label, text = int(row[0]) - 1, f"{row[1]} {row[2]}"
    elif len(row) == 2 and row[1] in ("0", "1", "2", "3"):
        label, text = int(row[1]), row[0]
    else:
        raise UserError(
            f"Line {number} of {path} cannot be read: {','.join(row)[:60]!r}.",
            "Its columns must be class (1 to 4), title and description, or text and class (0 to 3).",
        )
    return label, _clean(text.replace("\\", " ").encode(), str(path))


def read_cifar10(places: Sequence[Path], counts: Mapping[str, int]) -> Pixels:
    """Returns the gray pixels from an archive of CIFAR-10, its unpacked batches, or `train.npz` and `test.npz`."""
    arrays = {split: find_named(places, f"{split}.npz") for split in ("train", "test")}
    archive = find_named(places, "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
    if archive is None and None not in arrays.values():
        images = {split: read_npz(path) for split, path in arrays.items() if path}
    else:
        batches = _archived_batches(archive) if archive else _batches_in_folders(places)
        if len(batches) != len(_BATCHES):
            raise missing_file(places, "cifar-10-binary.tar.gz, cifar-10-python.tar.gz, or train.npz and test.npz")
        read = [read_binary_batch(c, n) if n.endswith(".bin") else read_pickled_batch(c, n) for n, c in batches]
        parts = {"train": read[:-1], "test": read[-1:]}
        images = {
            split: (gray(np.concatenate([p for p, _ in part])), np.concatenate([labels for _, labels in part]))
            for split, part in parts.items()
        }
    for split, (_, labels) in images.items():
        _check_count(len(labels), counts.get(split), f"images for {split}")
        if labels.max() > 9:
            raise UserError(f"{split} has the label {labels.max()}, not 0 to 9.", "Use a different source=.")
    return images


_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def _archived_batches(archive: Path) -> list[tuple[str, bytes]]:
    found = {}
    with damaged_archive_errors(archive), tarfile.open(archive) as opened:
        for info in opened:
            name = info.name.rsplit("/", 1)[-1]
            file = opened.extractfile(info) if name.removesuffix(".bin") in _BATCHES and info.isreg() else None
            if file:
                found[name.removesuffix(".bin")] = name, file.read()
    return [found[name] for name in _BATCHES if name in found]


def _batches_in_folders(places: Sequence[Path]) -> list[tuple[str, bytes]]:
    paths = [find_named(places, f"{name}.bin", name) for name in _BATCHES]
    return [(path.name, path.read_bytes()) for path in paths if path]


def read_retrieval(places: Sequence[Path], counts: Mapping[str, int]) -> Iterator[Example]:
    """Yields the pairs in `new_aan_pairs.train.tsv`, `.eval.tsv` and `.test.tsv`.

    Each article is truncated to 10,000 bytes.
    """
    for split, name in (("train", "train"), ("valid", "eval"), ("test", "test")):
        path = find_text(places, f"new_aan_pairs.{name}.tsv")
        if path is None:
            raise missing_file(places, f"new_aan_pairs.{name}.tsv")
        number = 0
        for number, line in enumerate(read_lines(str(path)), start=1):
            label, *parts = line.split("\t")
            if label not in ("0", "1", "0.0", "1.0") or len(parts) != 4:
                raise UserError(
                    f"Line {number} of {path} must have label, id1, id2, text1 and text2, separated by tabs, but is:",
                    repr(line[:60]),
                )
            first, second = (part.encode()[:_MOST_BYTES] for part in parts[2:])
            yield Example(split, int(float(label)), (first.translate(_BLANKS), second.translate(_BLANKS)))
        _check_count(number, counts.get(split), f"pairs in {path}")


_AG_NEWS = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv"
_IMDB_FILES = (
    RemoteFile(
        "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", digest="md5:7c2ac02c03563afcf9b574c7e56c153a"
    ),
)
_CIFAR_FILES = (
    RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", digest="md5:c32a1d4ab5d03f1284b67883e8d87530"
    ),
)
_IMDB_COUNTS = {"train": 25_000, "test": 25_000}
_CIFAR_COUNTS = {"train": 50_000, "test": 10_000}
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_GRAY = "the images of CIFAR-10 in gray, 1,024 pixels as tokens"

LABELLED = {
    corpus.name: corpus
    for corpus in (
        LabelledCorpus(
            "imdb", "IMDB reviews, negative or positive", "imdb", ("neg", "pos"), read_imdb, _IMDB_FILES, _IMDB_COUNTS
        ),
        LabelledCorpus(
            "ag_news",
            "AG News, titles and descriptions in four classes",
            "ag_news",
            ("World", "Sports", "Business", "Sci/Tech"),
            read_ag_news,
            (
                RemoteFile(f"{_AG_NEWS}/train.csv", digest="md5:b1a00f826fdfbd249f79597b59e1dc12"),
                RemoteFile(f"{_AG_NEWS}/test.csv", digest="md5:d52ea96a97a2d943681189a97654912d"),
            ),
            {"train": 120_000, "test": 7_600},
        ),
        LabelledCorpus(
            "cifar10_gray", _GRAY, "lra_image_small", _OBJECTS, read_cifar10, _CIFAR_FILES, _CIFAR_COUNTS, "pixels"
        ),
        LabelledCorpus(
            "lra_image", _GRAY, "lra_image_small", _OBJECTS, read_cifar10, _CIFAR_FILES, _CIFAR_COUNTS, "pixels"
        ),
        LabelledCorpus(
            "lra_text",
            "IMDB reviews as bytes",
            "lra_text_small",
            ("neg", "pos"),
            read_imdb,
            _IMDB_FILES,
            _IMDB_COUNTS,
            "bytes",
        ),
        LabelledCorpus(
            "lra_retrieval",
            "pairs of articles as bytes: does one cite the other?",
            "lra_retrieval_small",
            ("unrelated", "cites"),
            read_retrieval,
            counts={"train": 147_086, "valid": 18_090, "test": 17_437},
            tokens="bytes",
            pair=True,
        ),
    )
}
"""Maps names to corpora with classes."""
