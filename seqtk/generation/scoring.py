"""Scores of given targets.

B batch, T target length.
"""

from collections.abc import Sequence

import torch

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import PAD
from seqtk.generation.search import Hypothesis
from seqtk.models.base import Model


@torch.no_grad()
def score(models: Sequence[Model], batch: TranslationBatch | LanguageBatch) -> list[Hypothesis]:
    """The targets of `batch` as hypotheses: natural-log scores of their tokens, and their mean as the score.

    Several models are an ensemble, which averages their probabilities.
    """
    if any(model.training for model in models):
        raise ValueError("scores need models in eval mode")
    each = [_target_scores(model, batch) for model in models]
    scores_BT = torch.stack(each).logsumexp(dim=0) - torch.tensor(float(len(each))).log()
    hypotheses = []
    for target, scores in zip(batch.target_BT.tolist(), scores_BT.tolist(), strict=True):
        length = len(target) - target.count(PAD)
        token_scores = tuple(scores[:length])
        hypotheses.append(Hypothesis(tuple(target[:length]), sum(token_scores) / length, token_scores))
    return hypotheses


def _target_scores(model: Model, batch: TranslationBatch | LanguageBatch) -> torch.Tensor:
    """log_p_BT of each target token."""
    features_BTD, _ = model(batch)
    scores_N = model.head.target_log_probs(features_BTD.flatten(0, 1), batch.target_BT.flatten())
    return scores_N.view(batch.target_BT.shape)
