"""Label-smoothed cross entropy of softmax(x Wᵀ): a linear map, a log-softmax and the loss in one operation.

With p = softmax(x Wᵀ) and smoothing ε, the loss of a position is (1 - ε - ε/(V-1)) · -log p_target + ε/(V-1) · Σ_v -log
p_v: the V - 1 other tokens share ε, as in fairseq. Positions that do not count, such as padding, add nothing.

Where it runs: the chunked form runs on every device. The N × V logits and their gradients are the largest tensors of a
training step. The chunked form has about CHUNK_LOGITS logits in memory at a time. It computes both gradients in the
forward pass, so it computes the logits once, not twice as recomputation would. A CPU computes only the positions that
count. On other devices, selecting these positions would wait for the device to return their number, so the losses of
all other positions are multiplied by 0 instead. torch.compile treats the operation as a single operator, so that the
numbers of chunks and of positions are not constants of the compiled code.

N positions, D width, V vocabulary, C positions in a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.row_linear import is_in_pieces, row_outer, row_product, whole_rows
from seqtk.ops.tensors import to_fp32

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""The approximate number of logits in memory at a time: 32 MiB in float32 on a CPU, and as much for probabilities."""


def naive(
    features_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    counted_N: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Computes both losses from all logits at once."""
    if counted_N is not None:
        features_ND, target_N = features_ND[counted_N], target_N[counted_N]
    logits_NV = functional.linear(features_ND, weight_VD)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    log_p_NV = logits_NV.log_softmax(1)
    nll = -log_p_NV.gather(1, target_N[:, None]).sum()
    share = label_smoothing / max(log_p_NV.shape[1] - 1, 1)
    return (1 - label_smoothing - share) * nll - share * log_p_NV.sum(), nll.detach()


def linear_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    counted_N: Tensor | None = None,
    few_counted: bool = False,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Returns the label-smoothed loss and the unsmoothed loss, without a gradient, summed over positions, in nats.

    The logits have autocast's dtype; the sums are in float32 or wider. It supports first derivatives only.

    Args:
        features_ND: The features x.
        weight_VD: The weight matrix W.
        target_N: The target of each position. At positions that do not count, it may have any value.
        counted_N: False at positions that do not count. By default, all positions count.
        few_counted: True if most positions do not count. Then a GPU also skips them, although it must synchronize.
        label_smoothing: The smoothing ε.
    """
    if naive_mode():
        return naive(features_ND, weight_VD, target_N, counted_N=counted_N, label_smoothing=label_smoothing)
    device = features_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    options = (
        label_smoothing,
        torch.get_autocast_dtype(device) if autocast else features_ND.dtype,
        counted_N is not None and (few_counted or device == "cpu"),
    )
    if torch.compiler.is_compiling():
        needed = (torch.is_grad_enabled() and x.requires_grad for x in (features_ND, weight_VD))
        total, nll, _, _ = _operator(features_ND, weight_VD, target_N, counted_N, *options, *needed)
    else:
        total, nll = _ChunkedCrossEntropy.apply(features_ND, weight_VD, target_N, counted_N, *options)  # type: ignore[no-untyped-call]
    return total, nll


def _losses_and_gradients(
    features_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    counted_N: Tensor | None,
    label_smoothing: float,
    dtype: torch.dtype,
    selects: bool,
    need_features: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Computes the linear map, log-softmax, loss and both gradients in one pass over chunks of positions.

    `dtype` is the dtype of the logits (gradients: see `_gradient_dtype`). If `selects`, positions that do not count are
    skipped; otherwise their losses are multiplied by 0.
    """
    positions = len(features_ND)
    kept_N: Tensor | None = None
    if counted_N is not None and selects:
        kept_N, counted_N = counted_N.nonzero().squeeze(1), None
        features_ND, target_N = features_ND[kept_N], target_N[kept_N]
    elif counted_N is not None:
        features_ND, target_N = features_ND.masked_fill(~counted_N[:, None], 0), target_N.where(counted_N, 0)
    vocabulary_size = len(weight_VD)
    spread = label_smoothing / max(vocabulary_size - 1, 1)  # an adaptive softmax may have a band of one word
    on_target = 1.0 - label_smoothing - spread
    share = on_target + vocabulary_size * spread
    weight, features = weight_VD.to(dtype), features_ND.to(dtype)
    in_pieces = is_in_pieces(weight)
    sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    product_dtype = _gradient_dtype(dtype)
    grad_low_ND = torch.empty_like(features, dtype=product_dtype) if need_features else None
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=_gradient_dtype(weight_VD.dtype)) if need_weight else None
    product_weight = weight if product_dtype == dtype else weight_VD.to(product_dtype)
    index_N1, minus_target_11 = (
        target_N[:, None],
        torch.full((1, 1), -on_target / share, dtype=sum_dtype, device=features.device),
    )
    size = max(1, CHUNK_LOGITS.get(features_ND.device.type, 2**27) // vocabulary_size)
    size = whole_rows(size) or size  # so that a whole chunk is one product
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(features), size):
        chunk = slice(start, start + size)
        features_CD, index_C1 = features[chunk], index_N1[chunk]
        logits_CV = (row_product(features_CD, weight.T) if in_pieces else features_CD @ weight.T).to(sum_dtype)
        p_CV = logits_CV.softmax(dim=1)  # one pass over memory; logsumexp and the operations after it would take six
        found.append((logits_CV.amax(1, keepdim=True), p_CV.amax(1, keepdim=True), logits_CV.gather(1, index_C1)))
        del logits_CV
        # d total / d logits = share · p - on_target [target] - spread; share and spread follow after the products
        p_CV.scatter_add_(1, index_C1, minus_target_11.expand_as(index_C1))
        p_CV, features_CD = p_CV.to(product_dtype), features_CD.to(product_dtype)
        if counted_N is not None:
            p_CV *= counted_N[chunk, None]
        if grad_low_ND is not None and in_pieces:
            grad_low_ND[chunk] = row_product(p_CV, weight)
        elif grad_low_ND is not None:
            torch.mm(p_CV, product_weight, out=grad_low_ND[chunk])
        one_product = not in_pieces or len(p_CV) == whole_rows(len(p_CV))
        if grad_weight_VD is not None and grad_weight_VD.dtype == product_dtype and one_product:
            grad_weight_VD.addmm_(p_CV.T, features_CD)
        elif grad_weight_VD is not None:
            grad_weight_VD += row_outer(p_CV, features_CD) if in_pieces else p_CV.T @ features_CD
    largest_N1, largest_p_N1, of_target_N1 = map(torch.cat, zip(*found, strict=True)) if found else [weight[:0, :1]] * 3
    normalizer_N1 = largest_N1 - largest_p_N1.log()
    nll_N1 = normalizer_N1 - of_target_N1
    if counted_N is not None:
        nll_N1, normalizer_N1 = nll_N1 * counted_N[:, None], normalizer_N1 * counted_N[:, None]
    nll = nll_N1.sum(dtype=sum_dtype)
    total = on_target * nll
    if spread:
        total = total + spread * vocabulary_size * normalizer_N1.sum(dtype=sum_dtype)
    grad_features_ND = None if grad_low_ND is None else grad_low_ND.to(_gradient_dtype(features_ND.dtype))
    if spread:
        features_D, weight_D = features_ND.sum(0, dtype=sum_dtype), weight_VD.sum(0, dtype=sum_dtype)
        total -= spread * (features_D @ weight_D)  # the sum of all logits
        if grad_features_ND is not None:
            each_ND = weight_D if counted_N is None else weight_D * counted_N[:, None]
            grad_features_ND.mul_(share).sub_(spread * each_ND)
        if grad_weight_VD is not None:
            grad_weight_VD.mul_(share).sub_(spread * features_D)
    if grad_features_ND is not None and kept_N is not None:
        grad_features_ND = grad_features_ND.new_zeros(positions, grad_features_ND.shape[1]).index_copy_(
            0, kept_N, grad_features_ND
        )
    return total, nll, grad_features_ND, grad_weight_VD


def _gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of gradients before `_scaled`. In float16, the gradients of rare tokens would underflow."""
    return torch.float32 if dtype == torch.float16 else dtype


def _scaled(grad: Tensor | None, grad_total: Tensor) -> Tensor | None:
    """Returns `grad` times `grad_total` in float32 or wider; autograd converts it to the dtype of the input."""
    return None if grad is None else to_fp32(grad) * grad_total


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Returns the losses of `_losses_and_gradients`, and stores its gradients for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, features_ND: Tensor, weight_VD: Tensor, target_N: Tensor, counted_N: Tensor | None, *options: Any
    ) -> tuple[Tensor, Tensor]:
        total, nll, *grads = _losses_and_gradients(
            features_ND, weight_VD, target_N, counted_N, *options, *ctx.needs_input_grad[:2]
        )
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(_scaled(grad, grad_total) for grad in ctx.saved_tensors), *[None] * 5


@torch.library.custom_op("seqtk::linear_cross_entropy", mutates_args=())
def _operator(
    features_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    counted_N: Tensor | None,
    label_smoothing: float,
    dtype: torch.dtype,
    selects: bool,
    need_features: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes `_losses_and_gradients` as one operator for torch.compile. Unneeded gradients are empty tensors."""
    total, nll, *grads = _losses_and_gradients(
        features_ND, weight_VD, target_N, counted_N, label_smoothing, dtype, selects, need_features, need_weight
    )
    return total, nll, *(features_ND.new_empty(0) if grad is None else grad for grad in grads)  # type: ignore[return-value]


@_operator.register_fake
def _(features_ND: Tensor, weight_VD: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, _, need_features, need_weight = others[-4:]
    sums = features_ND.new_empty((2,), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    none = features_ND.new_empty(0)
    return (
        sums[0].clone(),
        sums[1].clone(),
        torch.empty_like(features_ND, dtype=_gradient_dtype(features_ND.dtype)) if need_features else none,
        torch.empty_like(weight_VD, dtype=_gradient_dtype(weight_VD.dtype)) if need_weight else none.clone(),
    )


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, nll, *grads = output
    ctx.save_for_backward(*(grad if need else None for grad, need in zip(grads, inputs[-2:], strict=True)))
    ctx.mark_non_differentiable(nll, *grads)


def _backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *(_scaled(grad, grad_total) for grad in ctx.saved_tensors), *[None] * 7


_operator.register_autograd(_backward, setup_context=_save_gradients)
