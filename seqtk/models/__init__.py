"""Models, built from modules and attention layers. Importing a file of this package registers its models."""

from seqtk.models import classifier as classifier
from seqtk.models import language_model as language_model
from seqtk.models import masked_lm as masked_lm
from seqtk.models import presets as presets
from seqtk.models import recurrent_memory as recurrent_memory
from seqtk.models import transformer as transformer
from seqtk.models.base import Model, ModelConfig, build_model, models

__all__ = ["Model", "ModelConfig", "build_model", "models"]
