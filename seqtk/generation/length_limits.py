"""Limits on the lengths of sources and targets.

B batch, P length of the prefix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import PAD
from seqtk.generation.config import SearchConfig
from seqtk.models.base import Model, Side


def length_limit(models: Sequence[Model], side: Side) -> int | None:
    """Returns the maximum length of a source or target for all models, including EOS, or None if there is no limit."""
    return min((limit for model in models if (limit := model.length_limit(side)) is not None), default=None)


def target_length_bounds(
    models: Sequence[Model],
    batch: TranslationBatch | LanguageBatch,
    config: SearchConfig,
    *,
    prefix_BP: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (min_B, max_B), the minimum and maximum number of tokens of each target before EOS.

    The maximum is ⌊max_length_a · source tokens + max_length_b⌋, at most the models' limit. The source tokens include
    EOS, but not padding, so the limit of a sentence does not depend on its batch. For language models, the prompt is
    the source, and the numbers include the prompt, while `min_length` and `max_length_b` do not.
    """
    if isinstance(batch, TranslationBatch):
        source_B = (batch.source_BS != PAD).sum(dim=1)
    else:
        source_B = torch.zeros_like(batch.ids_B) if prefix_BP is None else (prefix_BP != PAD).sum(dim=1)
    max_B = (source_B.double() * config.max_length_a + config.max_length_b).floor().long()
    if isinstance(batch, LanguageBatch):
        return source_B + config.min_length, source_B + max_B
    limit = length_limit(models, "target")
    return torch.full_like(max_B, config.min_length), max_B if limit is None else max_B.clamp(max=limit - 1)
