"""A tiny language model with a memory predicts text that only the previous sample determines.

Each line, "12>34", starts with the last two digits of the previous line. A model that remembers these digits has to
guess two of six characters: ln 10 / 3 = 0.77 nats per character. A model without memory has to guess four: 1.54.
"""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from seqtk.data.preprocess import PreprocessConfig, preprocess
from tests.e2e.learning import learned_nats

pytestmark = pytest.mark.slow

LINE = len("12>34\n")
TOKENS = {"kind": "recurrent_memory_lm", "segment_length": LINE}


def nats(folder: Path, *, seed: int, lines: int = 1, **model: Any) -> float:
    """Returns nats per character of new text, after training on 16 streams of samples of `lines` lines."""
    draw = random.Random(seed)
    for split, count in (("train", 12_800), ("valid", 640)):
        ends = ["".join(draw.choices("0123456789", k=2)) for _ in range(count + 1)]
        (folder / split).write_text("".join(f"{before}>{after}\n" for before, after in pairwise(ends)))
    data = f"{folder}/data-bin"
    preprocess(
        PreprocessConfig(
            train=f"{folder}/train", valid=(f"{folder}/valid",), destdir=data, tokens="characters", workers=1
        )
    )
    task = {"data": data, "tokens_per_sample": LINE * lines}
    return learned_nats(folder, task=task, model=model, updates=400, seed=seed, batch={"streams": 16})


def test_transformer_xl_remembers_the_previous_sample(seed: int, tmp_path: Path) -> None:
    attention = {"kind": "transformer_xl", "memory_length": 2 * LINE}
    assert nats(tmp_path, seed=seed, positions="none", attention=attention) < 1.0


def test_softmax_does_not_remember_the_previous_sample(seed: int, tmp_path: Path) -> None:
    assert nats(tmp_path, seed=seed) > 1.4


def test_memory_tokens_remember_the_previous_segment(seed: int, tmp_path: Path) -> None:
    """Most seeds reach 0.79. A few, such as 1543321785, stay at 1.16. Therefore the test tries two seeds."""

    def reached(seed: int) -> float:
        folder = tmp_path / str(seed)
        folder.mkdir()
        return nats(folder, seed=seed, lines=4, **TOKENS, memory_tokens=2)

    assert any(reached(each) < 1.0 for each in (seed, seed + 1))


def test_model_without_memory_tokens_does_not_remember(seed: int, tmp_path: Path) -> None:
    assert nats(tmp_path, seed=seed, lines=4, **TOKENS, memory_tokens=0) > 1.4
