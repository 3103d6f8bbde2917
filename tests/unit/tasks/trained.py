"""A function that builds trainers of small classifiers."""

from pathlib import Path
from typing import Any

from seqtk.config import schema
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer

MODEL: dict[str, Any] = {
    "kind": "transformer_classifier",
    "dim": 32,
    "ffn_dim": 64,
    "heads": 2,
    "encoder": {"layers": 1},
    "dropout": 0.0,
}


def trainer(folder: Path, save_dir: Path, kind: str = "classification", **changes: Any) -> Trainer:
    """Returns a trainer of a classifier. The keys of `changes` are names of settings with `__` instead of dots."""
    source = "labelled_lines" if kind == "classification" else "labelled_pairs"
    tree = {
        "device": "cpu",
        "save_dir": str(save_dir),
        "max_updates": 150,
        "task": {"kind": kind, "data": str(folder), "source": source},
        "model": MODEL,
        "criterion": "cross_entropy",
        "batch": {"max_tokens": None, "max_sentences": 32},
        "optimizer": {"lr": 0.005},
        "schedule": {"warmup_updates": 10},
        "validation": {"every": 75, "metric": "accuracy"},
        "log": {"every": 50, "tensorboard": False},
    }
    config = schema.from_dict(TrainConfig, tree)
    for key, value in changes.items():
        config = schema.update(config, key.replace("__", "."), value)
    return Trainer(config, engine=start_engine(device="cpu"))
