"""From features to log-probabilities and losses, never holding the logits of more than a chunk of positions.

N positions (batch and length flattened), D width, V vocabulary, C positions in a chunk; M positions of one band,
W words in it, E its width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.data.vocabulary import PAD
from seqtk.modules.adaptive_clusters import Bands
from seqtk.modules.dropout import Dropout
from seqtk.modules.embedding import AdaptiveEmbedding
from seqtk.ops.linear_cross_entropy import linear_cross_entropy
from seqtk.utils.errors import UserError

CHUNK_POSITIONS = 256
"""Positions whose log-probabilities over the whole vocabulary are held at once where targets are scored."""


@dataclass(frozen=True)
class TokenLosses:
    """Sums over the targets that are not PAD, in nats."""

    total: Tensor
    """(1 - ε - ε/(V-1)) · nll + ε/(V-1) · Σ_v -log p_v; the one with a gradient."""
    nll: Tensor


class Head(nn.Module):
    """What every output layer owes: the criterions take its losses, the search its log-probabilities."""

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Float32 log-probabilities of every token, softmax(logits / temperature)."""
        raise NotImplementedError

    def target_log_probs(self, features_ND: Tensor, target_N: Tensor) -> Tensor:
        """log_p_N: the float32 log-probability of each target, in nats."""
        return _picked(self.log_probs, features_ND, target_N)

    def losses(self, features_BTD: Tensor, target_BT: Tensor, *, label_smoothing: float = 0.0) -> TokenLosses:
        """The sums of the losses of the targets that are not PAD."""
        raise NotImplementedError


class LinearHead(Head):
    """softmax(x Wᵀ), with W its own or the embedding's."""

    def __init__(self, dim: int, vocabulary_size: int, *, tied_to: nn.Embedding | None = None) -> None:
        super().__init__()
        if tied_to is not None:
            self.weight = tied_to.weight
        else:
            self.weight = nn.Parameter(torch.empty(vocabulary_size, dim))
            nn.init.normal_(self.weight, std=dim**-0.5)

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        logits = functional.linear(features, self.weight).float()
        return functional.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)

    def losses(self, features_BTD: Tensor, target_BT: Tensor, *, label_smoothing: float = 0.0) -> TokenLosses:
        """Label-smoothed cross entropy as fairseq defines it: the V - 1 other tokens have the smoothed share."""
        return _cross_entropy(*_targets(features_BTD, target_BT), self.weight, label_smoothing=label_smoothing)


class AdaptiveHead(Head):
    """Rare words in two steps: p(w) = p(band) · p(w | band), with narrower vectors the rarer the band.

    The words of the first band and one class for each other band share a softmax; each other band has one of its own,
    over words of width D / factor^i to which the features are projected (Grave et al. 2017, arXiv:1609.04309, section
    4; no biases, as fairseq). `tied_to` gives the words of every band, and, with `tie_projections`, the projections:
    the input's, transposed; that of its first band has no counterpart here.
    """

    def __init__(
        self,
        bands: Bands,
        *,
        dim: int,
        factor: float,
        dropout: float = 0.0,
        tied_to: AdaptiveEmbedding | None = None,
        tie_projections: bool = False,
    ) -> None:
        super().__init__()
        self.cut = bands
        widths = bands.widths(dim, factor)
        if tied_to is not None:
            self.bands = nn.ParameterList(table.weight for table in tied_to.bands)
        else:
            self.bands = nn.ParameterList(map(_drawn, bands.sizes, widths))
        self.classes = _drawn(len(bands.sizes) - 1, dim)
        if tied_to is not None and tie_projections:
            self.projections = nn.ParameterList(linear.weight for linear in tied_to.projections[1:])
        else:
            self.projections = nn.ParameterList(_drawn(dim, width) for width in widths[1:])
        self.dropout = Dropout(dropout)

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Float32 log-probabilities of every token; with a temperature t, of p^(1/t), scaled to a sum of 1.

        That is softmax(logits / t) where there is one softmax. Dividing the logits of each by t, as fairseq does, would
        draw from another distribution: the tail as a whole would weigh more or less than its words.
        """
        first = _log_softmax(self._first_weight(), features)
        frequent, classes = torch.split(first, [self.cut.sizes[0], len(self.classes)], dim=-1)
        tails = zip(torch.split(classes, 1, dim=-1), self.projections, self.bands[1:], strict=True)
        log_p = torch.cat([frequent, *(band + _log_softmax(w_WE, features @ p_DE) for band, p_DE, w_WE in tails)], -1)
        return log_p if temperature == 1.0 else functional.log_softmax(log_p / temperature, dim=-1)

    def losses(self, features_BTD: Tensor, target_BT: Tensor, *, label_smoothing: float = 0.0) -> TokenLosses:
        """Cross entropy; only the tails that a target is in are computed for it."""
        if label_smoothing:
            raise UserError(
                f"label_smoothing={label_smoothing:g} cannot go with an adaptive softmax (model.adaptive).",
                "It needs the probability of every word at every place, which that softmax is there to spare.",
                "Set criterion=cross_entropy.",
            )
        steps = self._steps(*_targets(features_BTD, target_BT))
        parts = [_cross_entropy(features, target, weight) for _, features, target, weight in steps]
        return TokenLosses(
            total=torch.stack([part.total for part in parts]).sum(), nll=torch.stack([part.nll for part in parts]).sum()
        )

    def target_log_probs(self, features_ND: Tensor, target_N: Tensor) -> Tensor:
        """log_p_N: the float32 log-probability of each target, in nats; its own tail alone is computed for it."""
        log_p_N = torch.zeros(len(target_N), device=target_N.device)
        for at_M, features, target_M, weight in self._steps(features_ND, target_N):
            log_p_N = log_p_N.index_add(0, at_M, _picked(partial(_log_softmax, weight), features, target_M))
        return log_p_N

    def _steps(self, features_ND: Tensor, target_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Each softmax: the positions that go through it, what it reads there, what it should find, and its rows."""
        features_ND = self.dropout(features_ND)
        last_frequent = self.cut.sizes[0] - 1  # the class after it is band 1
        first_N = torch.where(target_N <= last_frequent, target_N, last_frequent + self.cut.number(target_N))
        yield torch.arange(len(target_N), device=target_N.device), features_ND, first_N, self._first_weight()
        members = self.cut.members(target_N)[1:]
        for start, at_M, p_DE, w_WE in zip(self.cut.starts[1:], members, self.projections, self.bands[1:], strict=True):
            yield at_M, self.dropout(features_ND[at_M] @ p_DE), target_N[at_M] - start, w_WE

    def _first_weight(self) -> Tensor:
        """The rows of the first softmax: frequent words, then a class for each band after them."""
        return torch.cat([self.bands[0], self.classes])


def _drawn(rows: int, columns: int) -> nn.Parameter:
    """A matrix drawn from Xavier's uniform distribution, as fairseq's adaptive softmax."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns)))


def _log_softmax(weight_WE: Tensor, features: Tensor) -> Tensor:
    return functional.log_softmax(functional.linear(features, weight_WE).float(), dim=-1)


def _picked(log_probs: Callable[[Tensor], Tensor], features_ND: Tensor, target_N: Tensor) -> Tensor:
    """log_p_N of each target, where all log-probabilities of no more than a chunk of positions are held."""
    chunks = zip(
        torch.split(features_ND, CHUNK_POSITIONS), torch.split(target_N[:, None], CHUNK_POSITIONS), strict=True
    )
    return torch.cat([log_probs(features).gather(1, target).squeeze(1) for features, target in chunks])


def _targets(features_BTD: Tensor, target_BT: Tensor) -> tuple[Tensor, Tensor]:
    """features_ND and target_N of the positions whose target is not PAD: the others are left out before any product."""
    kept_N = (target_BT.flatten() != PAD).nonzero().squeeze(1)
    return features_BTD.flatten(0, 1)[kept_N], target_BT.flatten()[kept_N]


def _cross_entropy(
    features_ND: Tensor, target_N: Tensor, weight_VD: Tensor, *, label_smoothing: float = 0.0
) -> TokenLosses:
    """The losses of softmax(x Wᵀ)."""
    return TokenLosses(*linear_cross_entropy(features_ND, weight_VD, target_N, label_smoothing=label_smoothing))
