"""Every registered optimizer reduces the loss and resumes bit-exactly."""

from pathlib import Path

import pytest
import torch

from seqtk.checkpoint.model_file import load_tensors
from seqtk.optim import optimizers
from tests.unit.training.helpers import losses, trainer

RATES = {"sgd": 1.0, "nag": 0.05, "adafactor": 0.2}
"""Learning rates of the optimizers for which the default 0.01 is too small."""


@pytest.mark.parametrize("kind", list(optimizers))
def test_resumed_run_equals_uninterrupted_run(kind: str, tiny_corpus: Path, tmp_path: Path) -> None:
    changes = {
        "optimizer": {"kind": kind, "lr": RATES.get(kind, 0.01), "weight_decay": 0.01},
        "schedule": {"kind": "wsd", "warmup_updates": 2, "period": 6, "decay_share": 0.5},
    }
    trainer(tiny_corpus, tmp_path / "whole", **changes).fit()
    trainer(tiny_corpus, tmp_path / "parts", **changes, max_updates=5).fit()
    trainer(tiny_corpus, tmp_path / "parts", **changes).fit()
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole == parts
    assert whole[-1][1] < 0.98 * whole[0][1]
    for name in ("model", "optimizer"):
        tensors, others = (
            load_tensors(tmp_path / run / "update_00000008" / f"{name}.safetensors")[0] for run in ("whole", "parts")
        )
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())
