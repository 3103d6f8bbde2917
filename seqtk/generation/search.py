"""The search over anything that can `step`: the best hypotheses of each row of a batch, or some drawn at random.

P length of the prefix.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.generation.beams import beam_search
from seqtk.generation.config import SearchConfig as SearchConfig
from seqtk.generation.constraints import Constraints
from seqtk.generation.hypotheses import Hypothesis as Hypothesis
from seqtk.generation.length_limits import target_length_bounds
from seqtk.generation.sampling import sample
from seqtk.models.base import Model


class BannedTokens(Protocol):
    """What the search needs of a vocabulary."""

    @property
    def never_generated(self) -> list[int]:
        """The ids that no search may choose; PAD is one of them."""


@torch.no_grad()
def search(
    models: Sequence[Model],
    batch: TranslationBatch | LanguageBatch,
    config: SearchConfig,
    *,
    vocabulary: BannedTokens,
    prefix_BP: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """For each row of `batch` its hypotheses: the best, at most `nbest` and at least one; or `nbest` samples.

    Several models are an ensemble, the mean of their probabilities. `prefix_BP`, padded with PAD, holds tokens that
    each target has to begin with; of a language model, whose batch says nothing else, these are the prompts.
    """
    config.check()
    if any(model.training for model in models):
        raise ValueError("search needs models in eval mode")
    least_B, most_B = target_length_bounds(models, batch, config, prefix_BP=prefix_BP)
    is_text = isinstance(batch, LanguageBatch)  # which a reader wants in words
    constraints = Constraints(
        never=vocabulary.never_generated,
        unk_penalty=(math.inf if is_text else 0.0) if config.unk_penalty is None else config.unk_penalty,
        least_B=least_B,
        limit_B=most_B,
        no_repeat_ngram=config.no_repeat_ngram,
        prefix_BP=prefix_BP,
    )
    find = sample if config.sampling else beam_search
    return find(models, batch, config, constraints)
