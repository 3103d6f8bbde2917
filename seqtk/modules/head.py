"""From features to log-probabilities and losses, never holding the logits of more than a chunk of positions.

N positions (batch and length flattened), D width, V vocabulary, C positions in a chunk.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.data.vocabulary import PAD

CHUNK_LOGITS = 2**22
"""How many float32 logits are held at once: 16 MiB, and as many probabilities."""

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
        chunks = zip(
            torch.split(features_ND, CHUNK_POSITIONS), torch.split(target_N[:, None], CHUNK_POSITIONS), strict=True
        )
        return torch.cat([self.log_probs(features).gather(1, target).squeeze(1) for features, target in chunks])

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
        """Label-smoothed cross entropy as fairseq defines it: the smoothed share is spread over the V - 1 other tokens.

        Positions whose target is PAD cost nothing: they are left out before the first product.
        """
        kept_N = (target_BT.flatten() != PAD).nonzero().squeeze(1)
        features_ND = features_BTD.flatten(0, 1)[kept_N]
        total, nll = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            features_ND, self.weight, target_BT.flatten()[kept_N], label_smoothing
        )
        return TokenLosses(total=total, nll=nll)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Linear, log-softmax, loss and both gradients in one pass over chunks of positions.

    The gradients are computed in the forward pass, where the chunk's logits are at hand: nothing of size N V is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        device = features_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features_ND.dtype
        vocabulary_size = len(weight_VD)
        spread = label_smoothing / (vocabulary_size - 1)
        on_target = 1.0 - label_smoothing - spread
        share = on_target + vocabulary_size * spread
        need_features, need_weight = ctx.needs_input_grad[:2]
        weight = weight_VD.to(dtype)
        sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        total = features_ND.new_zeros((), dtype=sum_dtype)
        nll = features_ND.new_zeros((), dtype=sum_dtype)
        grad_features_ND = torch.empty_like(features_ND) if need_features else None
        grad_weight_VD = torch.zeros_like(weight_VD) if need_weight else None
        size = max(1, CHUNK_LOGITS // vocabulary_size)
        for start in range(0, len(features_ND), size):
            chunk = slice(start, start + size)
            features_CD = features_ND[chunk].to(dtype)
            logits_CV = (features_CD @ weight.T).to(sum_dtype)
            index_C1 = target_N[chunk, None]
            p_CV = logits_CV.softmax(dim=1)  # one pass over memory, where logsumexp and what would follow are six
            normalizer_C1 = logits_CV.amax(dim=1, keepdim=True) - p_CV.amax(dim=1, keepdim=True).log()
            nll_chunk = (normalizer_C1 - logits_CV.gather(1, index_C1)).sum()
            nll += nll_chunk
            total += on_target * nll_chunk + spread * vocabulary_size * normalizer_C1.sum()
            del logits_CV
            # d total / d logits = share · p - on_target [target] - spread; share and spread come in after the products
            p_CV.scatter_add_(1, index_C1, p_CV.new_full((1, 1), -on_target / share).expand_as(index_C1))
            p_CV = p_CV.to(dtype)
            if grad_features_ND is not None:
                grad_features_ND[chunk] = p_CV @ weight
            if grad_weight_VD is not None and grad_weight_VD.dtype == dtype:
                grad_weight_VD.addmm_(p_CV.T, features_CD)
            elif grad_weight_VD is not None:
                grad_weight_VD += p_CV.T @ features_CD
        if spread:
            features_D, weight_D = features_ND.sum(0, dtype=sum_dtype), weight_VD.sum(0, dtype=sum_dtype)
            total -= spread * (features_D @ weight_D)  # the sum of all logits
            if grad_features_ND is not None:
                grad_features_ND.mul_(share).sub_(spread * weight_D)
            if grad_weight_VD is not None:
                grad_weight_VD.mul_(share).sub_(spread * features_D)
        ctx.save_for_backward(grad_features_ND, grad_weight_VD)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_features_ND, grad_weight_VD = ctx.saved_tensors
        return (
            None if grad_features_ND is None else grad_features_ND * grad_total.to(grad_features_ND.dtype),
            None if grad_weight_VD is None else grad_weight_VD * grad_total.to(grad_weight_VD.dtype),
            None,
            None,
        )
