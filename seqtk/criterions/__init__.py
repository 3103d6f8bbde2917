"""What is minimised, as sums with their weights: one import line a file, which registers it."""

from seqtk.criterions import cross_entropy as cross_entropy
from seqtk.criterions.base import Criterion, CriterionConfig, Loss, criterions

__all__ = ["Criterion", "CriterionConfig", "Loss", "criterions"]
