"""Sequence-to-sequence and language models with swappable attention layers.

`load` returns a trained model as an object with `translate`, `generate`, `score` and `evaluate`. `train` trains a
model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqtk.api import Run, train
    from seqtk.pipelines import GenerationPipeline, Pipeline, TranslationPipeline, load

__version__ = "0.1.0"
__all__ = ["GenerationPipeline", "Pipeline", "Run", "TranslationPipeline", "load", "train"]


def __getattr__(name: str) -> Any:
    """Imports the Python API on first use, because the API imports torch, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'seqtk' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module("seqtk.api" if name in ("Run", "train") else "seqtk.pipelines"), name)
