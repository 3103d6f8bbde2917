"""Beam search or sampling with any model that can decode step by step.

P prefix length.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.beams import beam_search
from seqtk.generation.config import SearchConfig as SearchConfig
from seqtk.generation.constraints import Constraints
from seqtk.generation.length_limits import target_length_bounds
from seqtk.generation.sampling import sample
from seqtk.generation.scoring import Hypothesis as Hypothesis
from seqtk.models.base import Model


@torch.no_grad()
def search(
    models: Sequence[Model],
    batch: TranslationBatch | LanguageBatch,
    config: SearchConfig,
    *,
    vocabulary: Vocabulary,
    prefix_BP: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Returns hypotheses for each row of `batch`: at most `nbest` from beam search, or `nbest` samples.

    Args:
        models: One model, or several, whose probabilities are averaged. They must be in evaluation mode.
        batch: The sources. For language models, a batch of empty rows, one for each prompt.
        config: The settings.
        vocabulary: The vocabulary of the outputs. Its `never_generated` tokens are not produced.
        prefix_BP: Tokens that each output must begin with, padded with PAD. For language models, the prompts.

    Raises:
        UserError: If settings contradict each other, or a log-probability is NaN.
    """
    config.check()
    if any(model.training for model in models):
        raise ValueError("the models must be in eval mode")
    min_B, max_B = target_length_bounds(models, batch, config, prefix_BP=prefix_BP)
    is_text = isinstance(batch, LanguageBatch)  # generated text should not contain <unk> by default
    constraints = Constraints(
        never_N=torch.tensor(vocabulary.never_generated, device=batch.ids_B.device),
        unk_penalty=(math.inf if is_text else 0.0) if config.unk_penalty is None else config.unk_penalty,
        min_B=min_B,
        max_B=max_B,
        no_repeat_ngram=config.no_repeat_ngram,
        prefix_BP=prefix_BP,
    )
    find = sample if config.sampling else beam_search
    return find(models, batch, config, constraints)
