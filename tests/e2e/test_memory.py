"""A tiny language model with a memory predicts what only the previous sample determines.

Each line, "12>34", first repeats the end of the previous line. A model that remembers it guesses two digits of six
characters: ln 10 / 3 = 0.77 nats per character. A model that does not guesses four: 1.54.
"""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from seqtk.config import schema
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validate

pytestmark = pytest.mark.slow

LINE = len("12>34\n")
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "max_updates": 400,
    "clip_norm": 1.0,
    "batch": {"streams": 16},
    "validation": {"every": 400},
    "model": {
        "kind": "transformer_lm",
        "dim": 64,
        "ffn_dim": 128,
        "heads": 4,
        "layers": 2,
        "positions": "learned",
        "scale_embedding": False,
        "dropout": 0.0,
        "pre_norm": True,
    },
    "criterion": {"kind": "cross_entropy"},
    "optimizer": {"lr": 0.005},
    "schedule": {"kind": "cosine", "warmup_updates": 50},
    "log": {"tensorboard": False},
}
TOKENS = {"kind": "recurrent_memory_lm", "segment_length": LINE}


@pytest.fixture
def seed() -> int:
    """A new seed for each run; a failing test prints it."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    return seed


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
    task = {"kind": "language_modeling", "data": data, "tokens_per_sample": LINE * lines}
    tree = SETTINGS | {"seed": seed, "save_dir": f"{folder}/run", "task": task, "model": SETTINGS["model"] | model}
    trainer = Trainer(schema.from_dict(TrainConfig, tree), engine=start_engine(device="cpu"))
    assert trainer.fit().signal == 0
    figures, _ = validate(trainer.step, trainer.task, trainer.config, engine=trainer.engine)
    print(f"nll {figures['nll']:.3f}")
    return float(figures["nll"])


def test_transformer_xl_remembers_the_previous_sample(seed: int, tmp_path: Path) -> None:
    attention = {"kind": "transformer_xl", "memory_length": 2 * LINE}
    assert nats(tmp_path, seed=seed, positions="none", attention=attention) < 1.0


def test_softmax_does_not_remember(seed: int, tmp_path: Path) -> None:
    assert nats(tmp_path, seed=seed) > 1.4


def test_memory_tokens_remember_previous_segment(seed: int, tmp_path: Path) -> None:
    """Most seeds reach 0.79. A few, such as 1543321785, stay at 1.16 however long they train: two seeds are tried."""

    def reached(seed: int) -> float:
        folder = tmp_path / str(seed)
        folder.mkdir()
        return nats(folder, seed=seed, lines=4, **TOKENS, memory_tokens=2)

    assert any(reached(each) < 1.0 for each in (seed, seed + 1))


def test_without_memory_tokens_nothing_is_remembered(seed: int, tmp_path: Path) -> None:
    assert nats(tmp_path, seed=seed, lines=4, **TOKENS, memory_tokens=0) > 1.4
