"""Makes the demo corpus: generates distinct sentence pairs from a seed, and writes text files and a data-bin."""

import fcntl
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from seqtk.config.fields import setting
from seqtk.corpora.demo.sampler import Sampler
from seqtk.corpora.demo.sentences import sentence
from seqtk.data.preprocess import DATABIN_FILES, PreprocessConfig, check_destination, preprocess
from seqtk.data.report import PreprocessReport
from seqtk.utils.files import atomic_files, disk_full_errors
from seqtk.utils.progress import Reporter

DESTINATION = "data-bin/demo"
WORDS = range(3, 26)
"""The allowed numbers of English words of a sentence."""


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo corpus: its size, its seed, and the folder to write."""

    destdir: str = setting(DESTINATION, help="Data-bin folder to write. Its subfolder text contains the text files.")
    pairs: int = setting(20000, at_least=1, help="Number of training pairs. Validation and test have 500 pairs each.")
    vocab_size: int = setting(2500, at_least=1, at_most=10_000_000, help="Size of the joint SentencePiece vocabulary.")
    seed: int = setting(1, at_least=0, help="Seed of the sentences.")
    overwrite: bool = setting(False, help="Replace an existing data-bin in destdir.")


def prepare(config: DemoConfig, *, reporter: Reporter | None = None) -> PreprocessReport:
    """Makes the demo corpus. The same settings give the same corpus on all machines.

    Raises UserError if the folder cannot be written, or contains a data-bin and `overwrite` is false.
    """
    text = Path(config.destdir) / "text"
    settings = PreprocessConfig(
        source_lang="en",
        target_lang="de",
        train=str(text / "train"),
        valid=(str(text / "valid"),),
        test=(str(text / "test"),),
        destdir=config.destdir,
        vocab_size=config.vocab_size,
        character_coverage=1.0,
        overwrite=config.overwrite,
        workers=1,
    )
    check_destination(Path(config.destdir), overwrite=config.overwrite)
    write_corpus(text, train=config.pairs, seed=config.seed)
    return preprocess(settings, reporter=reporter)


def ensure(destination: str = DESTINATION) -> None:
    """Makes the demo corpus in `destination` unless it exists. Several processes may call it at the same time."""
    folder = Path(destination)
    lock = folder.with_name(f".{folder.name}.lock")
    if exists(folder):
        return
    with disk_full_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not exists(folder):
                    prepare(DemoConfig(destdir=destination))
            finally:
                lock.unlink(missing_ok=True)


def exists(folder: Path) -> bool:
    """Returns True if `folder` contains a complete data-bin. The dictionaries are written last."""
    return any(folder.glob(DATABIN_FILES[0]))


def pairs(count: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """Returns `count` pairs (English, German) with distinct English sentences. They depend only on the seed."""
    return islice(_distinct(seed), count)


def _distinct(seed: int) -> Iterator[tuple[str, str]]:
    draw = Sampler(random.Random(seed))
    seen = set()
    while True:
        english, german = sentence(draw)
        if english not in seen and len(english.split()) in WORDS:
            seen.add(english)
            yield english, german


def write_corpus(directory: Path, *, train: int = 20000, valid: int = 500, test: int = 500, seed: int = 1) -> None:
    """Writes train, valid and test as `.en` and `.de`, one sentence per line. All English sentences are distinct.

    Validation and test are drawn first, so they do not depend on the size of the training set.
    """
    drawn = pairs(train + valid + test, seed=seed)
    for split, count in (("valid", valid), ("test", test), ("train", train)):
        with atomic_files([directory / f"{split}.{lang}" for lang in ("en", "de")]) as files:
            for pair in islice(drawn, count):
                for file, line in zip(files, pair, strict=True):
                    file.write(f"{line}\n".encode())
