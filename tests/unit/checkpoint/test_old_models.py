"""A model file of version 0.1.0 still gives the loss that 0.1.0 computed, for every attention layer.

`losses_0_1_0.json` contains the configs of the models and the losses that 0.1.0 computed. The name of a tensor seeds
its random weights, so renaming a tensor changes the loss. A language model is called twice, the second time with the
recurrent state that the first call returns.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqtk.checkpoint.model_file import ModelFile, tensors_of, write
from seqtk.checkpoint.trained_model import load
from seqtk.config import legacy, schema
from seqtk.criterions import CriterionConfig, criterions
from seqtk.data.vocabulary import EOS, UNK
from seqtk.models import Model, ModelConfig
from seqtk.tasks import Task, TaskConfig, tasks
from seqtk.tasks.translation import TranslationTask

CASES: dict[str, Any] = json.loads((Path(__file__).parent / "losses_0_1_0.json").read_text())
VOCABULARY = "".join(f"w{number} 1\n" for number in range(28))
TASKS: dict[str, dict[str, Any]] = {
    "language_modeling": {"text.dict": VOCABULARY},
    "translation": {
        "source.lang": "xx",
        "target.lang": "yy",
        "source.dict": VOCABULARY,
        "target.dict": VOCABULARY,
    },
}
"""The assets of each task."""


@dataclass(frozen=True)
class Parts:
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    criterion: CriterionConfig = CriterionConfig()


def losses(task: Task, model: Model) -> list[float]:
    """Returns the loss per target of a fixed batch.

    For a language model, also returns the loss with the recurrent state that the first call returns.
    """
    criterion = criterions.build(schema.from_dict(Parts, {"criterion": "cross_entropy"}).criterion)
    is_translation = isinstance(task, TranslationTask)
    examples: list[tuple[Any, ...]] = (
        [(0, ids(19, 5), ids(13, 7)), (1, ids(11, 3), ids(17, 2))]
        if is_translation
        else [(0, ids(25, 5)[:-1]), (1, ids(25, 7)[:-1])]
    )
    batch = task.collate(examples)
    found = [criterion(model, batch)]
    if not is_translation:
        found.append(criterion(model, batch, found[0].state))
    return [float(loss.total.detach()) / loss.weight for loss in found]


def ids(length: int, step: int) -> np.ndarray:
    words = [UNK + 1 + (step * place) % 27 for place in range(length - 1)]
    return np.array([*words, EOS])


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_the_loss_of_version_0_1_0(name: str, tmp_path: Path) -> None:
    tree = CASES[name]["model"]
    kind = "language_modeling" if tree["kind"].endswith("_lm") else "translation"
    config = {"task": {"kind": kind}, "model": tree}
    parts = legacy.from_dict(Parts, config)
    drawn = tasks.build(parts.task, assets=TASKS[kind]).model(parts.model)
    tensors = {key: weights(key, tensor) for key, tensor in tensors_of(drawn).items()}
    write(tmp_path / "old.safetensors", ModelFile(tensors, config, TASKS[kind], {"version": "0.1.0"}))
    loaded = load(tmp_path / "old.safetensors")
    assert losses(loaded.task, loaded.model) == pytest.approx(CASES[name]["losses"], rel=2e-5)


def weights(name: str, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return 0.7 * torch.randn(like.shape, generator=generator)
