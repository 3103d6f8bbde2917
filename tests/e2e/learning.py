"""Trains tiny language models and returns their validation loss."""

from pathlib import Path
from typing import Any

from seqtk.config import schema
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validate

LANGUAGE_MODEL: dict[str, Any] = {
    "device": "cpu",
    "clip_norm": 1.0,
    "criterion": {"kind": "cross_entropy"},
    "optimizer": {"lr": 0.005},
    "schedule": {"kind": "cosine", "warmup_updates": 50},
    "log": {"tensorboard": False},
}
MODEL: dict[str, Any] = {
    "kind": "transformer_lm",
    "dim": 64,
    "ffn_dim": 128,
    "heads": 4,
    "layers": 2,
    "positions": "learned",
    "scale_embedding": False,
    "dropout": 0.0,
    "pre_norm": True,
}


def learned_nats(folder: Path, *, task: dict[str, Any], model: dict[str, Any], updates: int, **settings: Any) -> float:
    """Trains a language model in `folder` and returns its nats per token on the validation split."""
    tree = LANGUAGE_MODEL | {
        "save_dir": f"{folder}/run",
        "max_updates": updates,
        "validation": {"every": updates},
        "task": {"kind": "language_modeling", **task},
        "model": MODEL | model,
    }
    trainer = Trainer(schema.from_dict(TrainConfig, tree | settings), engine=start_engine(device="cpu"))
    assert trainer.fit().signal == 0
    figures, _ = validate(trainer.step, trainer.task, trainer.config, engine=trainer.engine)
    print(f"nll {figures['nll']:.3f}")
    return float(figures["nll"])
