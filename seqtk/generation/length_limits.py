"""How long a source may be and a target may become.

B batch, S source length, P length of the prefix.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from seqtk.attention import Attention, Role
from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import PAD
from seqtk.generation.config import SearchConfig
from seqtk.models.base import Model

Side = Literal["source", "target"]


def longest_source(models: Sequence[Model]) -> int | None:
    """The most source tokens, EOS counted, that every one of `models` can read; None if there is no limit."""
    return _least(limit for model in models for limit in [model.max_source_length, *_layer_limits(model, "source")])


def longest_target(models: Sequence[Model]) -> int | None:
    """The most target tokens, EOS counted, that every one of `models` can write; None if there is no limit."""
    return _least(limit for model in models for limit in [model.max_target_length, *_layer_limits(model, "target")])


def most_tokens(source_BS: Tensor, *, a: float, b: int, longest: int | None) -> Tensor:
    """limit_B: each target may have ⌊a · source tokens + b⌋ tokens before its EOS, and fit in `longest` with it.

    The source's EOS counts and its padding does not, so a sentence has the same limit in any batch.
    """
    length_B = (source_BS != PAD).sum(dim=1)
    limit_B = (length_B.double() * a + b).floor().long()
    return limit_B if longest is None else limit_B.clamp(max=longest - 1)


def text_lengths(
    models: Sequence[Model],
    batch: TranslationBatch | LanguageBatch,
    config: SearchConfig,
    *,
    prefix_BP: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(least_B, most_B): how many tokens each text may have before its EOS.

    A language model's prompt comes first; what is asked for is how far it goes on, and there is no longest text.
    """
    a, b = config.max_length_a, config.max_length_b
    if isinstance(batch, TranslationBatch):
        most_B = most_tokens(batch.source_BS, a=a, b=b, longest=longest_target(models))
        return torch.full_like(most_B, config.min_length), most_B
    given_B = torch.zeros_like(batch.ids_B) if prefix_BP is None else (prefix_BP != PAD).sum(dim=1)
    return given_B + config.min_length, given_B + (given_B.double() * a + b).floor().long()


def narrowest_layer(model: Model, side: Side) -> Attention | None:
    """The attention layer that takes the fewest tokens of a side; None if there is no limit."""
    limited = [layer for layer in _layers(model, side) if layer.max_length is not None]
    return min(limited, key=lambda layer: layer.max_length or 0, default=None)


def _layer_limits(model: Model, side: Side) -> list[int | None]:
    return [layer.max_length for layer in _layers(model, side)]


def _layers(model: Model, side: Side) -> list[Attention]:
    """The layers that attend to a side."""
    roles = Role.ENCODER | Role.CROSS if side == "source" else Role.CAUSAL
    return [layer for layer in model.layers_of_whole_rows() if layer.role in roles]


def _least(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
