"""Trainers of tiny runs for the tests of training."""

import json
import logging
import math
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqtk.config import schema
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.signals import SIGNALS
from seqtk.training.trainer import Trainer

TINY: dict[str, Any] = {
    "device": "cpu",
    "max_updates": 8,
    "batch": {"max_tokens": 400},
    "model": {
        "dim": 16,
        "ffn_dim": 32,
        "heads": 2,
        "encoder": {"layers": 1},
        "decoder": {"layers": 1},
    },
    "schedule": {"warmup_updates": 4},
    "optimizer": {"lr": 0.01},
    "checkpoint": {"every": 3},
    "validation": {"every": 4},
    "log": {"every": 1, "tensorboard": False},
}


def tiny_config(corpus: Path, save_dir: Path, **changes: Any) -> TrainConfig:
    """Returns the config of a tiny run on `corpus`. `changes` has dotted keys with `__` instead of the dot."""
    config = schema.from_dict(TrainConfig, {**TINY, "save_dir": str(save_dir), "task": {"data": str(corpus)}})
    for key, value in changes.items():
        config = schema.update(config, key.replace("__", "."), value)
    return config


def trainer(corpus: Path, save_dir: Path, **changes: Any) -> Trainer:
    """Returns a trainer of a tiny run in this process."""
    return Trainer(tiny_config(corpus, save_dir, **changes), engine=start_engine(device="cpu"))


def byte_corpus(folder: Path, *, train: str, valid: str) -> str:
    """Returns a data-bin of two texts, tokenized into bytes."""
    (folder / "train").write_text(train)
    (folder / "valid").write_text(valid)
    preprocess(
        PreprocessConfig(
            tokens="bytes", train=f"{folder}/train", valid=(f"{folder}/valid",), destdir=f"{folder}/bin", workers=1
        )
    )
    return f"{folder}/bin"


def text_trainer(data: str, save_dir: Path, *, model: dict[str, Any], batch: dict[str, Any], **changes: Any) -> Trainer:
    """Returns a trainer of a language model on samples of 16 tokens. In `changes`, `__` replaces the dot of a key."""
    tree = {
        "device": "cpu",
        "save_dir": str(save_dir),
        "max_updates": 9,
        "task": {"kind": "language_modeling", "data": data, "tokens_per_sample": 16},
        "model": model,
        "batch": batch,
        "criterion": "cross_entropy",
        "schedule": {"warmup_updates": 4},
        "optimizer": {"lr": 0.01},
        "checkpoint": {"every": 4},
        "validation": {"every": 5},
        "log": {"every": 1, "tensorboard": False},
    }
    config = schema.from_dict(TrainConfig, tree)
    for key, value in changes.items():
        config = schema.update(config, key.replace("__", "."), value)
    return Trainer(config, engine=start_engine(device="cpu"))


MODULE = "decoder.blocks.0.feed_forward.expand"
"""The default module of `spoil`."""


def spoil(run: Trainer, *, at: int, how: str = "forward", training: bool = True, module: str = MODULE) -> None:
    """Makes a module of the run produce NaN in an update or validation, in its forward or backward pass."""

    def is_now() -> bool:
        return run.state.update == at and run.step.training == training

    def spoilt(output: Tensor) -> Tensor:
        if how == "forward":
            return output * math.nan
        output.register_hook(lambda gradient: gradient * math.nan)
        return output

    def forward(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not is_now():
            return output
        return (spoilt(output[0]), *output[1:]) if isinstance(output, tuple) else spoilt(output)

    run.model.get_submodule(module).register_forward_hook(forward)


def process_state() -> dict[str, Any]:
    """Returns the settings of this process that a library should not change."""
    return {
        "threads": torch.get_num_threads(),
        "random numbers": [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()],
        "data type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "gradients": torch.is_grad_enabled(),
        "matrix products": torch.get_float32_matmul_precision(),
        "recompile limit": torch._dynamo.config.recompile_limit,  # type: ignore[attr-defined]
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "exceptions": [sys.excepthook, threading.excepthook],
        "warnings": list(warnings.filters),
        "log handlers": list(logging.root.handlers),
    }


def losses(save_dir: Path, kind: str = "train") -> list[tuple[int, float]]:
    """Returns a list of (update, loss) of the log lines whose kind is `kind`."""
    lines = map(json.loads, (save_dir / "log.jsonl").read_text().splitlines())
    return [(line["update"], line["loss"]) for line in lines if line["kind"] == kind]


def sums_of(run: Trainer) -> dict[str, float]:
    """Returns the sums over the updates since the last log line."""
    run.read_sums()
    return run.state.interval
