"""Heads: the chunked loss equals torch's loss on all logits, for any chunk size, and pooling for classification."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seqtk.data.vocabulary import PAD
from seqtk.modules.embedding import token_embedding
from seqtk.modules.head import LinearHead
from seqtk.modules.pooled_head import Pool, PooledHead, pooled
from seqtk.ops import linear_cross_entropy as chunked
from seqtk.utils.errors import UserError

D, V = 5, 11


def example(*, dtype: torch.dtype = torch.float64) -> tuple[LinearHead, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    head = LinearHead(D, V).to(dtype)
    features_BTD = torch.randn(3, 4, D, dtype=dtype, generator=generator).requires_grad_()
    target_BT = torch.randint(4, V, (3, 4), generator=generator)
    target_BT[0, 3] = target_BT[2, 1:] = PAD
    return head, features_BTD, target_BT


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize(
    "positions_in_chunk", [1, 3, 8, 100]
)  # of 8 targets: one at a time, uneven chunks, all, more than all
def test_chunked_loss_equals_torch_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, positions_in_chunk: int
) -> None:
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", positions_in_chunk * V)
    head, features_BTD, target_BT = example()
    assert int((target_BT != PAD).sum()) == 8
    losses = head(features_BTD, target_BT, label_smoothing=smoothing)
    gradients = torch.autograd.grad(losses.total, [features_BTD, head.weight])

    logits_NV = (features_BTD @ head.weight.T).flatten(0, 1)
    # torch distributes ε over all V tokens, fairseq over the other V - 1 tokens
    settings = {"label_smoothing": smoothing * V / (V - 1), "ignore_index": PAD, "reduction": "sum"}
    wanted = functional.cross_entropy(logits_NV, target_BT.flatten(), **settings)  # type: ignore[arg-type]
    nll = functional.cross_entropy(logits_NV, target_BT.flatten(), ignore_index=PAD, reduction="sum")
    torch.testing.assert_close(losses.total, wanted)
    torch.testing.assert_close(losses.nll, nll)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, [features_BTD, head.weight]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_pass_gradcheck(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", 3 * V)
    head, features_BTD, target_BT = example()

    def total(features_BTD: Tensor, weight_VD: Tensor) -> Tensor:
        head.weight = weight_VD  # type: ignore[assignment]
        return head(features_BTD, target_BT, label_smoothing=smoothing).total

    weight_VD = head.weight.detach().clone().requires_grad_()
    del head.weight
    assert torch.autograd.gradcheck(total, (features_BTD, weight_VD))


def test_padded_targets_are_skipped() -> None:
    head, features_BTD, target_BT = example()
    loud = features_BTD.detach().clone()
    loud[target_BT == PAD] = torch.nan
    loud.requires_grad_()
    losses = head(loud, target_BT, label_smoothing=0.1)
    losses.total.backward()
    assert loud.grad is not None
    torch.testing.assert_close(losses.total, head(features_BTD, target_BT, label_smoothing=0.1).total)
    assert loud.grad[target_BT == PAD].abs().max() == 0


def test_batch_of_padding_has_zero_loss() -> None:
    head, features_BTD, target_BT = example()
    losses = head(features_BTD, torch.full_like(target_BT, PAD), label_smoothing=0.1)
    losses.total.backward()
    assert losses.total.item() == losses.nll.item() == 0
    assert head.weight.grad is not None
    assert head.weight.grad.abs().max() == 0


def test_loss_under_no_grad_has_no_gradient() -> None:
    head, features_BTD, target_BT = example()
    losses = head(features_BTD, target_BT, label_smoothing=0.1)
    assert not losses.nll.requires_grad
    with torch.no_grad():
        again = head(features_BTD, target_BT, label_smoothing=0.1)
    torch.testing.assert_close(again.total, losses.total.detach())
    assert not again.total.requires_grad


def test_loss_under_autocast_is_near_float32() -> None:
    head, features_BTD, target_BT = example(dtype=torch.float32)
    exact = head(features_BTD, target_BT, label_smoothing=0.1)
    gradient = torch.autograd.grad(exact.total, head.weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(features_BTD, target_BT, label_smoothing=0.1)
    assert rough.total.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact.total.item(), rel=0.01)
    rough_gradient = torch.autograd.grad(rough.total, head.weight)[0]
    assert rough_gradient.dtype == torch.float32
    assert (rough_gradient - gradient).norm() < 0.02 * gradient.norm()


def test_temperature_divides_the_logits() -> None:
    head, features_BTD, _ = example(dtype=torch.float32)
    logits_BTV = features_BTD @ head.weight.T
    torch.testing.assert_close(head.log_probs(features_BTD), logits_BTV.log_softmax(-1))
    torch.testing.assert_close(head.log_probs(features_BTD, temperature=0.5), (2 * logits_BTV).log_softmax(-1))


def test_tied_head_shares_the_embedding_weight() -> None:
    tokens = token_embedding(V, D)
    head = LinearHead(D, V, tied_to=tokens)
    assert head.weight is tokens.weight
    assert LinearHead(D, V).weight.shape == (V, D)


class TestPooledHead:
    PAD_BT = torch.tensor([[False, False, False], [False, True, True], [True, True, True]])

    def features(self) -> Tensor:
        return torch.randn(3, 3, D, generator=torch.Generator().manual_seed(2))

    def test_each_pool_equals_its_formula(self) -> None:
        features_BTD = self.features()
        wanted = {
            "mean": features_BTD[0].mean(0),
            "max": features_BTD[0].amax(0),
            "cls": features_BTD[0, 0],
            "last": features_BTD[0, 2],
        }
        for pool in get_args(Pool):
            vector_BD = pooled(features_BTD, pool, pad_BT=self.PAD_BT)
            torch.testing.assert_close(vector_BD[0], wanted[pool])
            torch.testing.assert_close(vector_BD[1], features_BTD[1, 0])
            assert vector_BD[2].abs().max() == 0

    @pytest.mark.parametrize("pool", get_args(Pool))
    def test_pooling_ignores_padding(self, pool: Pool) -> None:
        loud = self.features().masked_fill(self.PAD_BT[:, :, None], torch.nan)
        torch.testing.assert_close(
            pooled(loud, pool, pad_BT=self.PAD_BT), pooled(self.features(), pool, pad_BT=self.PAD_BT)
        )

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_class_with_the_id_of_padding_is_not_ignored(self, smoothing: float) -> None:
        assert PAD == 1
        head = PooledHead(D, 3, pool="mean")
        target_B = torch.tensor([1, 1, 0])
        losses = head(self.features(), target_B, label_smoothing=smoothing)
        log_p_BC = head.logits(self.features()).log_softmax(1)
        nll = -log_p_BC.gather(1, target_B[:, None]).sum()
        total = (1 - smoothing - smoothing / 2) * nll - smoothing / 2 * log_p_BC.sum()
        torch.testing.assert_close(losses.nll, nll)
        torch.testing.assert_close(losses.total, total)
        assert int(losses.correct) == int((log_p_BC.argmax(1) == target_B).sum())
        assert not losses.nll.requires_grad

    def test_too_much_label_smoothing_is_refused(self) -> None:
        head = PooledHead(D, 2, pool="mean")
        head.check_label_smoothing(0.5)
        with pytest.raises(UserError, match=r"label_smoothing=0\.6 .* 2 classes"):
            head.check_label_smoothing(0.6)
        LinearHead(D, 5).check_label_smoothing(0.8)
        with pytest.raises(UserError, match=r"label_smoothing=0\.81 .* 5 tokens(.|\n)*0\.8 or less"):
            LinearHead(D, 5).check_label_smoothing(0.81)
