"""What a search finds."""

from dataclasses import dataclass

import torch

from seqtk.data.vocabulary import EOS
from seqtk.generation.config import SearchConfig


@dataclass(frozen=True)
class Hypothesis:
    """One translation, or one text of a language model: its ids, EOS at the end, with natural-log scores."""

    tokens: tuple[int, ...]
    score: float
    """Σ token_scores, divided by len(tokens)^length_penalty where scores are normalised."""
    token_scores: tuple[float, ...]


NOTHING = Hypothesis(tokens=(EOS,), score=-torch.inf, token_scores=(-torch.inf,))
"""What can be said where every token is banned."""


def ended(tokens: list[int], token_scores: list[float], config: SearchConfig) -> Hypothesis:
    """The hypothesis of these tokens before its EOS; `token_scores` has that of EOS at its end."""
    total = sum(token_scores)
    score = total / len(token_scores) ** config.length_penalty if config.normalize_scores else total
    return Hypothesis(tokens=(*tokens, EOS), score=score, token_scores=tuple(token_scores))
