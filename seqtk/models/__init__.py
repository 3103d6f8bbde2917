"""Whole networks made from modules and attention layers: one import line each, which registers it."""

from seqtk.models import architectures as architectures
from seqtk.models import transformer as transformer
from seqtk.models.base import Model, ModelConfig, models

__all__ = ["Model", "ModelConfig", "models"]
