"""Criterions (loss functions). Importing a file registers the criterions in it."""

from seqtk.criterions import cross_entropy as cross_entropy
from seqtk.criterions import weighted_sum as weighted_sum
from seqtk.criterions.base import Criterion, CriterionConfig, Loss, criterions

__all__ = ["Criterion", "CriterionConfig", "Loss", "criterions"]
