"""Heads: output layers that compute losses and log-probabilities from features. A task selects the head of its model.

Token heads predict a token at each position and skip targets that are PAD: `LinearHead` here, `AdaptiveHead` in
`seqtk.modules.adaptive`. `PooledHead` in `seqtk.modules.pooled_head` predicts one class for each row.

B batch, T length, N positions (batch and length flattened), D width, V vocabulary.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.data.vocabulary import PAD
from seqtk.ops.linear_cross_entropy import linear_cross_entropy
from seqtk.utils.errors import UserError, how_many

CHUNK_POSITIONS = 256
"""When targets are scored, the log-probabilities of at most this many positions are in memory."""


class HeadLosses(NamedTuple):
    """The losses of a batch, in nats, as sums over the targets."""

    total: Tensor
    """(1 - ε - ε/(V-1)) · nll + ε/(V-1) · Σ_v -log p_v. The only field with a gradient."""
    nll: Tensor
    correct: Tensor | None = None
    """The number of correctly predicted targets. None: the head does not count them."""
    logits_BC: Tensor | None = None
    """The logits of all classes, without gradient, if the head predicts one class per row."""


class Head(nn.Module):
    """Base class of heads. Training calls the module; decoding and scoring call its methods."""

    counts_correct: ClassVar[bool] = False
    """True if the head sets `HeadLosses.correct`."""
    reads_class_vector: bool = False
    """True if the head reads the feature of a learned class vector, which the model puts before each row."""

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        """Returns the sums of the losses of all targets.

        Args:
            features_BTD: The output of the model.
            target: target_BT for a token head, target_B for a head that predicts one class per row.
            pad_BT: True where a feature is padding. Token heads read the padding from the targets instead.
            label_smoothing: ε, the probability that the V - 1 other tokens or classes share.
        """
        raise NotImplementedError

    def check_label_smoothing(self, label_smoothing: float) -> None:
        """Raises UserError if `forward` does not support this label smoothing. Called before training."""

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Returns float32 log-probabilities of every token, log softmax(logits / temperature)."""
        raise NotImplementedError

    def target_log_probs(self, features_ND: Tensor, target_N: Tensor) -> Tensor:
        """Returns log_p_N, the float32 log-probability of each target in nats."""
        return picked(self.log_probs, features_ND, target_N)


class LinearHead(Head):
    """A head that predicts a token at each position: softmax(x Wᵀ). W may be tied to the embedding."""

    def __init__(self, dim: int, vocabulary_size: int, *, tied_to: nn.Embedding | None = None) -> None:
        super().__init__()
        if tied_to is not None:
            self.weight = tied_to.weight
        else:
            self.weight = nn.Parameter(torch.empty(vocabulary_size, dim))
            nn.init.normal_(self.weight, std=dim**-0.5)

    def check_label_smoothing(self, label_smoothing: float) -> None:
        check_below_uniform(label_smoothing, classes=len(self.weight), noun="token")

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        logits = functional.linear(features, self.weight).float()
        return functional.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        target_N = target.flatten()
        losses = linear_cross_entropy(
            features_BTD.flatten(0, 1),
            self.weight,
            target_N,
            counted_N=target_N != PAD,
            label_smoothing=label_smoothing,
        )
        return HeadLosses(*losses)


def check_below_uniform(label_smoothing: float, *, classes: int, noun: str) -> None:
    """Raises UserError if smoothed targets give the other classes (tokens) a higher probability than the target."""
    if label_smoothing * classes > max(classes - 1, 1):
        raise UserError(
            f"criterion.label_smoothing={label_smoothing:g} is too high for {how_many(classes, noun)}: "
            f"the other {noun}{'es' if noun.endswith('s') else 's'} would have a higher probability than the target.",
            f"Set it to {100 * (classes - 1) // classes / 100} or less.",
        )


def picked(log_probs: Callable[[Tensor], Tensor], features_ND: Tensor, target_N: Tensor) -> Tensor:
    """Returns log_p_N of each target. Log-probabilities of one chunk of positions are in memory at a time."""
    chunks = zip(
        torch.split(features_ND, CHUNK_POSITIONS), torch.split(target_N[:, None], CHUNK_POSITIONS), strict=True
    )
    return torch.cat([log_probs(features).gather(1, target).squeeze(1) for features, target in chunks])


def real_targets(features_BTD: Tensor, target_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Returns features_ND and target_N of the positions whose target is not PAD."""
    kept_N = (target_BT.flatten() != PAD).nonzero().squeeze(1)
    return features_BTD.flatten(0, 1)[kept_N], target_BT.flatten()[kept_N]
