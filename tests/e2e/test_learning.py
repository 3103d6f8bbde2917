"""A tiny Transformer learns to reverse strings of digits, with every kind of self-attention and from every seed.

To know where a reversed string begins, one has to know how long it is: where in the source a target position must look
depends on the whole source, which the encoder's self-attention alone can tell. Seen over eighteen seeds: with it, at
least 0.95 of new strings right and at most 0.06 nats a token; without it, at most 0.12 and at least 0.56.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk import schema
from seqtk.attention import Role
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.training.config import TrainConfig
from seqtk.training.distributed import start_world
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validate

pytestmark = pytest.mark.slow

TRAIN, VALID = 3000, 200
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "max_updates": 350,
    "clip_norm": 1.0,
    "batch": {"max_tokens": 1200},
    "model": {
        "dim": 64,
        "ffn_dim": 128,
        "heads": 4,
        "encoder": {"layers": 1},
        "decoder": {"layers": 1},
        "dropout": 0.0,
        "pre_norm": True,
    },
    "criterion": {"label_smoothing": 0.0},
    "optimizer": {"lr": 0.005},
    "schedule": {"kind": "cosine", "warmup_updates": 50},
    "validation": {"decode": True, "search": {"beam": 1, "max_length_b": 12}},
    "log": {"tensorboard": False},
}


@pytest.fixture
def seed() -> int:
    """A new one each time, to be read where a test fails."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    return seed


def write_reversals(folder: Path, *, seed: int) -> Path:
    """A data-bin directory of strings of four to seven digits and their reversals; validation strings are new ones."""
    draw = random.Random(seed)
    strings: dict[str, None] = {}
    while len(strings) < TRAIN + VALID:
        strings[" ".join(draw.choices("0123456789", k=draw.randint(4, 7)))] = None
    lines = list(strings)
    for split, part in (("train", lines[VALID:]), ("valid", lines[:VALID])):
        (folder / f"{split}.fw").write_text("".join(f"{line}\n" for line in part))
        (folder / f"{split}.bw").write_text("".join(f"{line[::-1]}\n" for line in part))
    preprocess(
        PreprocessConfig(
            source_lang="fw",
            target_lang="bw",
            train=str(folder / "train"),
            valid=(str(folder / "valid"),),
            destdir=str(folder / "data-bin"),
            tokens="words",
            workers=1,
        )
    )
    return folder / "data-bin"


def learn(folder: Path, *, seed: int, attention: dict[str, Any], deaf: bool = False) -> tuple[float, float]:
    """Nats a token, and the share of the validation strings reversed right; `deaf`: self-attention says nothing."""
    data = write_reversals(folder, seed=seed)
    config = schema.from_dict(
        TrainConfig,
        {
            **SETTINGS,
            "seed": seed,
            "save_dir": str(folder / "run"),
            "task": {"data": str(data)},
            "attention": attention,
        },
    )
    trainer = Trainer(config, world=start_world("cpu"))
    if deaf:
        for _, layer in trainer.model.attention_layers():
            if layer.role is not Role.CROSS:
                layer.register_forward_hook(lambda layer, inputs, output: torch.zeros_like(output))
    assert trainer.fit() == 0
    figures, outputs = validate(trainer.objective, trainer.task, config, world=trainer.world)
    right = sum(output.output == output.reference for output in outputs) / len(outputs)
    print(f"nll {figures['nll']:.3f}, right {right:.3f}")
    return float(figures["nll"]), right


@pytest.mark.parametrize("kind", ["softmax", "synthesizer_mixture", "synthesizer_dense", "synthesizer_random"])
def test_a_tiny_model_learns_to_reverse(kind: str, seed: int, tmp_path: Path) -> None:
    attention: dict[str, Any] = {"kind": kind}
    if kind != "softmax":
        attention["max_length"] = 10
    nll, right = learn(tmp_path, seed=seed, attention=attention)
    assert nll < 0.3
    assert right > 0.7


def test_without_self_attention_it_does_not(seed: int, tmp_path: Path) -> None:
    nll, right = learn(tmp_path, seed=seed, attention={"kind": "softmax"}, deaf=True)
    assert nll > 0.4
    assert right < 0.2
