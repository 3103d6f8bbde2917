"""Limits on the lengths of sources and targets.

B batch, S source length, P length of the prefix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import PAD
from seqtk.generation.config import SearchConfig
from seqtk.models.base import Model


def longest_source(models: Sequence[Model]) -> int | None:
    """Returns the maximum length of a source for all models, including EOS, or None if there is no limit."""
    return min((limit for model in models if (limit := model.length_limit("source")) is not None), default=None)


def longest_target(models: Sequence[Model]) -> int | None:
    """Returns the maximum length of a target for all models, including EOS, or None if there is no limit."""
    return min((limit for model in models if (limit := model.length_limit("target")) is not None), default=None)


def max_target_lengths(source_BS: Tensor, *, a: float, b: int, longest: int | None) -> Tensor:
    """Returns limit_B, the maximum number of tokens of each target before EOS: ⌊a · source tokens + b⌋.

    The source tokens include EOS, but not padding, so the limit of a sentence does not depend on its batch. If
    `longest` is not None, limits are at most `longest - 1`.
    """
    length_B = (source_BS != PAD).sum(dim=1)
    limit_B = (length_B.double() * a + b).floor().long()
    return limit_B if longest is None else limit_B.clamp(max=longest - 1)


def target_length_bounds(
    models: Sequence[Model],
    batch: TranslationBatch | LanguageBatch,
    config: SearchConfig,
    *,
    prefix_BP: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns (min_B, max_B), the minimum and maximum number of tokens of each target before EOS.

    For language models, these numbers include the prompt, while `min_length` and `max_length_b` do not.
    """
    a, b = config.max_length_a, config.max_length_b
    if isinstance(batch, TranslationBatch):
        max_B = max_target_lengths(batch.source_BS, a=a, b=b, longest=longest_target(models))
        return torch.full_like(max_B, config.min_length), max_B
    prompt_B = torch.zeros_like(batch.ids_B) if prefix_BP is None else (prefix_BP != PAD).sum(dim=1)
    return prompt_B + config.min_length, prompt_B + (prompt_B.double() * a + b).floor().long()
