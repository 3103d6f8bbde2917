"""Distinct sentence pairs from a seed, and the files of the demo corpus."""

import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from seqtk.corpora.demo.sampler import Sampler
from seqtk.corpora.demo.sentences import sentence

WORDS = range(3, 26)  # how long a sentence may be, in English words


def pairs(count: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """`count` pairs (English, German), no English sentence twice; the same for the same seed, on every machine."""
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
    """`directory` holds train, valid and test as `.en` and `.de`, a sentence a line, no English one in two of them.

    A file appears whole or not at all. Validation and test are drawn first: they stay the same as training grows.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn = pairs(train + valid + test, seed=seed)
    for split, count in (("valid", valid), ("test", test), ("train", train)):
        english, german = zip(*islice(drawn, count), strict=True) if count else ((), ())
        for language, lines in (("en", english), ("de", german)):
            _write(directory / f"{split}.{language}", "".join(f"{line}\n" for line in lines))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
