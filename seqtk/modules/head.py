"""Output layers: from features to losses and log-probabilities. A task chooses the head of its model.

Token heads (`LinearHead`, `AdaptiveHead`) predict a token at each position and skip targets that are PAD. `PooledHead`
predicts one class for each row.

B batch, T length, N positions (batch and length flattened), D width, V vocabulary, C classes; M positions of one band,
W words in it, E its width.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Literal, NamedTuple

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
"""Positions whose log-probabilities over the whole vocabulary are held at once when targets are scored."""

Pool = Literal["mean", "max", "cls", "last"]


class HeadLosses(NamedTuple):
    """Sums over the targets; losses in nats."""

    total: Tensor
    """(1 - ε - ε/(V-1)) · nll + ε/(V-1) · Σ_v -log p_v; the only one with a gradient."""
    nll: Tensor
    correct: Tensor | None = None
    """The number of targets that are the most probable class; None if the head does not count them."""


class Head(nn.Module):
    """The base of output layers. Training calls the module; decoding and scoring use its methods."""

    counts_correct: ClassVar[bool] = False
    """Whether the losses have `correct`."""

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        """The sums of the losses of all targets.

        Args:
            features_BTD: The output of the model.
            target: target_BT of a token head, target_B of a pooled one.
            pad_BT: True where a feature is padding. Token heads read the padding from the targets instead.
            label_smoothing: ε, which the V - 1 other tokens or classes share.
        """
        raise NotImplementedError

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Float32 log-probabilities of every token, softmax(logits / temperature)."""
        raise NotImplementedError

    def target_log_probs(self, features_ND: Tensor, target_N: Tensor) -> Tensor:
        """log_p_N: the float32 log-probability of each target, in nats."""
        return _picked(self.log_probs, features_ND, target_N)


class LinearHead(Head):
    """softmax(x Wᵀ) at each position, with W the head's own or the embedding's."""

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

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        features_ND, target_N = _targets(features_BTD, target)
        return HeadLosses(*linear_cross_entropy(features_ND, self.weight, target_N, label_smoothing=label_smoothing))


class PooledHead(Head):
    """One class for each row: softmax(W pool(x) + b).

    Args:
        dim: D, the width of the features.
        classes: C. Every number below C is a class; there is no padding among them.
        pool: How the features of a row become one vector: their `mean` or `max`, or the feature of the first (`cls`)
            or of the `last` position. Padding is left out; a row of padding alone has the vector 0.
        dropout: The dropout rate of the pooled vector.
    """

    counts_correct = True

    def __init__(self, dim: int, classes: int, *, pool: Pool = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        self.pool = pool
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, classes)
        nn.init.normal_(self.linear.weight, std=dim**-0.5)
        nn.init.zeros_(self.linear.bias)

    def logits(self, features_BTD: Tensor, *, pad_BT: Tensor | None = None) -> Tensor:
        """logits_BC, in float32."""
        logits_BC: Tensor = self.linear(self.dropout(pooled(features_BTD, self.pool, pad_BT=pad_BT))).float()
        return logits_BC

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        logits_BC = self.logits(features_BTD, pad_BT=pad_BT)
        classes = logits_BC.shape[1]
        # torch shares ε among all C classes; here the C - 1 others have it, as in the token heads.
        share = label_smoothing * classes / max(classes - 1, 1)
        total = functional.cross_entropy(logits_BC, target, label_smoothing=share, reduction="sum")
        with torch.no_grad():
            nll = functional.cross_entropy(logits_BC, target, reduction="sum")
            correct = (logits_BC.argmax(1) == target).sum()
        return HeadLosses(total, nll, correct)


def pooled(features_BTD: Tensor, pool: Pool, *, pad_BT: Tensor | None = None) -> Tensor:
    """vector_BD of each row. See `PooledHead`."""
    if pad_BT is None:
        pad_BT = torch.zeros(features_BTD.shape[:2], dtype=torch.bool, device=features_BTD.device)
    real_BT1 = ~pad_BT[:, :, None]
    length_B1 = real_BT1.sum(1)
    if pool == "mean":
        return features_BTD.where(real_BT1, 0).sum(1) / length_B1.clamp(min=1)
    if pool == "max":
        vector_BD = features_BTD.masked_fill(~real_BT1, -torch.inf).amax(1)
    elif pool == "cls":
        vector_BD = features_BTD[:, 0]
    else:
        last_B = length_B1[:, 0].clamp(min=1) - 1
        vector_BD = features_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
    return vector_BD.where(length_B1 > 0, 0)


class AdaptiveHead(Head):
    """Rare words in two steps: p(w) = p(band) · p(w | band), with narrower vectors the rarer the band.

    The words of the first band and one class for each other band share a softmax. Each other band has another softmax,
    over words of width D / factor^i to which the features are projected (Grave et al. 2017, arXiv:1609.04309, section
    4; no biases, as in fairseq).

    Args:
        bands: The words of each band.
        dim: D.
        factor: How many times narrower the vectors of a band are than those of the band before it.
        dropout: The dropout rate of the features and of their projections.
        tied_to: The embedding whose word vectors are used here.
        tie_projections: Whether its projections are used too, transposed. That of the first band is not needed here.
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

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        """The losses; only the band of its target is computed for a position."""
        if label_smoothing:
            raise UserError(
                f"criterion.label_smoothing={label_smoothing:g}: an adaptive softmax (model.adaptive) cannot smooth.",
                "Smoothing needs the probability of every word at every position, which that softmax avoids.",
                "Set criterion=cross_entropy.",
            )
        steps = self._steps(*_targets(features_BTD, target))
        totals, nlls = zip(
            *(linear_cross_entropy(x, weight, target_N) for _, x, target_N, weight in steps), strict=True
        )
        return HeadLosses(total=torch.stack(totals).sum(), nll=torch.stack(nlls).sum())

    def target_log_probs(self, features_ND: Tensor, target_N: Tensor) -> Tensor:
        """log_p_N: the float32 log-probability of each target, in nats, computed from its band alone."""
        log_p_N = torch.zeros(len(target_N), device=target_N.device)
        for at_M, features, target_M, weight in self._steps(features_ND, target_N):
            log_p_N = log_p_N.index_add(0, at_M, _picked(partial(_log_softmax, weight), features, target_M))
        return log_p_N

    def _steps(self, features_ND: Tensor, target_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each softmax: the positions that use it, its input there, their targets in it, and its weight."""
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
    """log_p_N of each target, holding the log-probabilities of one chunk of positions at a time."""
    chunks = zip(
        torch.split(features_ND, CHUNK_POSITIONS), torch.split(target_N[:, None], CHUNK_POSITIONS), strict=True
    )
    return torch.cat([log_probs(features).gather(1, target).squeeze(1) for features, target in chunks])


def _targets(features_BTD: Tensor, target_BT: Tensor) -> tuple[Tensor, Tensor]:
    """features_ND and target_N of the positions whose target is not PAD."""
    kept_N = (target_BT.flatten() != PAD).nonzero().squeeze(1)
    return features_BTD.flatten(0, 1)[kept_N], target_BT.flatten()[kept_N]
