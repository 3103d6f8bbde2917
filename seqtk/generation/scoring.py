"""The class of hypotheses, and a function that scores given targets.

B batch, T target length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import EOS, PAD
from seqtk.generation.config import SearchConfig
from seqtk.models.base import Model
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class Hypothesis:
    """An output: token ids that end in EOS, with their log-probabilities in nats."""

    tokens: tuple[int, ...]
    score: float
    """Σ token_scores, divided by len(tokens)^length_penalty if scores are normalized."""
    token_scores: tuple[float, ...]


EMPTY = Hypothesis(tokens=(EOS,), score=-torch.inf, token_scores=(-torch.inf,))
"""The hypothesis that a search returns if every token is banned."""


def check_not_nan(values: Tensor, *, name: str = "log-probabilities") -> None:
    """Raises UserError if one of a model's `values` is NaN. `name` is their name in the error."""
    if values.isnan().any():
        raise UserError(
            f"The model's {name} are NaN.",
            "Its training diverged, or precision=bf16 is too low for this model.",
        )


def finish(tokens: list[int], token_scores: list[float], config: SearchConfig) -> Hypothesis:
    """Returns the hypothesis that consists of `tokens` and EOS. `token_scores` includes the score of EOS."""
    total = sum(token_scores)
    score = total / len(token_scores) ** config.length_penalty if config.normalize_scores else total
    return Hypothesis(tokens=(*tokens, EOS), score=score, token_scores=tuple(token_scores))


@torch.no_grad()
def score(models: Sequence[Model], batch: TranslationBatch | LanguageBatch) -> list[Hypothesis]:
    """Scores the targets of `batch`, and returns them as hypotheses.

    The score of a target is its mean log-probability per token. The probabilities of several models are averaged.
    Raises UserError if a log-probability is NaN.
    """
    if any(model.training for model in models):
        raise ValueError("the models must be in eval mode")
    scores_MBT = torch.stack([_target_scores(model, batch) for model in models])
    scores_BT = scores_MBT.logsumexp(dim=0) - torch.tensor(float(len(models))).log()
    check_not_nan(scores_BT)
    hypotheses = []
    for target, scores in zip(batch.target_BT.tolist(), scores_BT.tolist(), strict=True):
        length = len(target) - target.count(PAD)
        token_scores = tuple(scores[:length])
        hypotheses.append(Hypothesis(tuple(target[:length]), sum(token_scores) / length, token_scores))
    return hypotheses


def _target_scores(model: Model, batch: TranslationBatch | LanguageBatch) -> Tensor:
    """Returns log_p_BT, the log-probability of each target token."""
    features_BTD, _ = model(batch)
    scores_N = model.head.target_log_probs(features_BTD.flatten(0, 1), batch.target_BT.flatten())
    return scores_N.view(batch.target_BT.shape)
