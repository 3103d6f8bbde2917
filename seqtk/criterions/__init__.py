"""Criterions: one import line for each file, which registers what it defines."""

from seqtk.criterions import cross_entropy as cross_entropy
from seqtk.criterions.base import Criterion, CriterionConfig, Loss, criterions

__all__ = ["Criterion", "CriterionConfig", "Loss", "criterions"]
