"""Loads trained models as Python objects that translate, generate or classify text.

    import seqtk
    model = seqtk.load("checkpoints/multi30k_synth")
    model.translate(["A man in an orange hat."], beam=5)

The commands that decode, evaluate or classify use the same classes.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch

from seqtk.checkpoint import trained_model
from seqtk.config.registry import load_plugins
from seqtk.pipelines.base import Pipeline, TextPipeline
from seqtk.pipelines.classification import Classification, ClassificationPipeline
from seqtk.pipelines.generation import CorpusScores, GenerationPipeline
from seqtk.pipelines.translation import TranslationPipeline
from seqtk.tasks import Task
from seqtk.tasks.classification import ClassificationTask
from seqtk.tasks.language_modeling import LanguageModelingTask
from seqtk.tasks.translation import TranslationTask
from seqtk.utils.errors import UserError

__all__ = [
    "Classification",
    "ClassificationPipeline",
    "CorpusScores",
    "GenerationPipeline",
    "Pipeline",
    "TextPipeline",
    "TranslationPipeline",
    "load",
]

Path = str | os.PathLike[str]


def load(
    path: Path | Sequence[Path],
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    user_dir: str | None = None,
) -> "Pipeline":
    """Loads a trained model.

    Args:
        path: A model file, the folder of a checkpoint, or the folder of a run (its best model). Several paths make an
            ensemble, which averages their probabilities.
        device: The device. "auto": a GPU if there is one.
        precision: The precision of the computation: float32, or bfloat16 autocast. Scores are always float32.
        user_dir: A package or module with plug-ins, which is imported first.

    Returns:
        A `TranslationPipeline`, a `GenerationPipeline` for a language model, a `ClassificationPipeline`, or else a
        `Pipeline`.

    Raises:
        UserError: If an argument is invalid, if there is no model at a path, or if the models cannot form an ensemble.
    """
    for key, value, known in (("device", device, ("auto", "cpu", "cuda")), ("precision", precision, ("fp32", "bf16"))):
        if value not in known:
            raise UserError(f"{key}={value}: must be one of {', '.join(known)}.")
    load_plugins(user_dir)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU.", "Set device=cpu or device=auto.")
    torch_device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise UserError("checkpoint= is empty.", "Set it to one or more models.")
    loaded = [trained_model.load(item, device=torch_device) for item in paths]
    for other, item in zip(paths, loaded, strict=True):
        if type(item.task) is not type(loaded[0].task):
            raise UserError(f"{other} and {paths[0]} are models for different tasks: they cannot form an ensemble.")
        if _vocabularies(item.task) != _vocabularies(loaded[0].task):
            raise UserError(
                f"{other} and {paths[0]} have different vocabularies or classes: they cannot form an ensemble."
            )
    pipelines: dict[type[Task], type[Pipeline]] = {
        TranslationTask: TranslationPipeline,
        LanguageModelingTask: GenerationPipeline,
        ClassificationTask: ClassificationPipeline,
    }
    pipeline = next((cls for task, cls in pipelines.items() if isinstance(loaded[0].task, task)), Pipeline)
    return pipeline(loaded, device=torch_device, bf16=precision == "bf16")


def _vocabularies(task: Task) -> list[Any]:
    return [getattr(task, name, None) for name in ("source_vocabulary", "target_vocabulary", "vocabulary", "classes")]
