"""Label-smoothed cross entropy of softmax(x Wᵀ): a linear map, a log-softmax and the loss in one operation.

With p = softmax(x Wᵀ) and smoothing ε, the loss of a position is (1 - ε - ε/(V-1)) · -log p_target + ε/(V-1) · Σ_v -log
p_v: the V - 1 other tokens share ε, as in fairseq.

Where it runs: the chunked form runs on every device. The N × V logits and their gradients are the largest tensors of a
training step. The chunked form holds CHUNK_LOGITS of them at a time. It computes both gradients in the forward pass, so
it computes the logits once, not twice as recomputation would.

N positions, D width, V vocabulary, C positions in a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode

CHUNK_LOGITS = 2**22
"""The approximate number of logits in memory at a time: 16 MiB in float32, and as much for the probabilities."""


def naive(
    features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Computes the formula with all logits at once."""
    logits_NV = functional.linear(features_ND, weight_VD)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    log_p_NV = logits_NV.log_softmax(1)
    nll = -log_p_NV.gather(1, target_N[:, None]).sum()
    share = label_smoothing / (log_p_NV.shape[1] - 1)
    return (1 - label_smoothing - share) * nll - share * log_p_NV.sum(), nll.detach()


def linear_cross_entropy(
    features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Returns the label-smoothed loss and the unsmoothed loss, without a gradient, summed over positions, in nats.

    The logits have autocast's dtype; the sums are in float32 or wider. It supports first derivatives only.
    """
    if naive_mode():
        return naive(features_ND, weight_VD, target_N, label_smoothing=label_smoothing)
    total, nll = _ChunkedCrossEntropy.apply(features_ND, weight_VD, target_N, label_smoothing)  # type: ignore[no-untyped-call]
    return total, nll


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the linear map, log-softmax, loss and both gradients in one pass over chunks of positions."""

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
            p_CV = logits_CV.softmax(
                dim=1
            )  # one pass over memory; logsumexp and the operations after it would take six
            normalizer_C1 = logits_CV.amax(dim=1, keepdim=True) - p_CV.amax(dim=1, keepdim=True).log()
            nll_chunk = (normalizer_C1 - logits_CV.gather(1, index_C1)).sum()
            nll += nll_chunk
            total += on_target * nll_chunk + spread * vocabulary_size * normalizer_C1.sum()
            del logits_CV
            # d total / d logits = share · p - on_target [target] - spread; share and spread follow after the products
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
