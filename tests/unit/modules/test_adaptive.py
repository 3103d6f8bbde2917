"""Adaptive input and softmax, compared with plain loops over tokens and with torch's adaptive softmax."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from seqtk.data.vocabulary import PAD
from seqtk.modules import head as module
from seqtk.modules.adaptive import AdaptiveConfig, AdaptiveEmbedding, AdaptiveHead
from seqtk.ops import linear_cross_entropy as chunked
from seqtk.ops.dispatch import naive_mode
from seqtk.testing.memory import Measure
from seqtk.utils.errors import UserError

D, V, FACTOR = 8, 23, 2.0
BANDS = AdaptiveConfig(cutoffs=(6, 13)).bands(V)  # 6, 7 and 10 words, with widths 8, 4 and 2
SHARING = {"own": (False, False), "words": (True, False), "words and projections": (True, True)}


def embedding() -> AdaptiveEmbedding:
    return AdaptiveEmbedding(BANDS, dim=D, factor=FACTOR).double()


def head(sharing: str = "own", *, dropout: float = 0.0) -> AdaptiveHead:
    torch.manual_seed(1)
    words, projections = SHARING[sharing]
    made = AdaptiveHead(
        BANDS,
        dim=D,
        factor=FACTOR,
        dropout=dropout,
        tied_to=embedding() if words else None,
        tie_projections=projections,
    )
    return made.double()


def example(*, words: int = V) -> tuple[Tensor, Tensor]:
    """Returns features and targets. Three targets are PAD, and all are less than `words`."""
    generator = torch.Generator().manual_seed(1)
    features_BTD = torch.randn(3, 7, D, dtype=torch.float64, generator=generator).requires_grad_()
    target_BT = torch.randint(2, words, (3, 7), generator=generator)
    target_BT[0, 3] = target_BT[2, 5:] = PAD
    return features_BTD, target_BT


def naive_log_p(adaptive: AdaptiveHead, feature_D: Tensor, word: int) -> Tensor:
    """Computes the log-probability of one word from its definition."""
    band = sum(word >= start for start in BANDS.starts[1:])
    logits = [feature_D @ row for row in adaptive.bands[0]] + [feature_D @ row for row in adaptive.classes]
    first = word if band == 0 else BANDS.sizes[0] + band - 1
    log_p = logits[first] - torch.stack(logits).logsumexp(0)
    if band:
        projected = torch.stack([feature_D @ column for column in adaptive.projections[band - 1].T])
        tail = torch.stack([projected @ row for row in adaptive.bands[band]])
        log_p = log_p + tail[word - BANDS.starts[band]] - tail.logsumexp(0)
    return log_p


def naive_loss(adaptive: AdaptiveHead, features_BTD: Tensor, target_BT: Tensor) -> Tensor:
    pairs = zip(features_BTD.flatten(0, 1), target_BT.flatten().tolist(), strict=True)
    return -torch.stack([naive_log_p(adaptive, feature_D, word) for feature_D, word in pairs if word != PAD]).sum()


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("logits_in_chunk", [1, 30, 2**22])  # one position, a few, all
def test_losses_and_gradients_equal_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, sharing: str, logits_in_chunk: int
) -> None:
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", logits_in_chunk)
    adaptive, (features_BTD, target_BT) = head(sharing), example()
    of = [features_BTD, *adaptive.parameters()]
    losses = adaptive(features_BTD, target_BT)
    wanted = naive_loss(adaptive, features_BTD, target_BT)
    torch.testing.assert_close(losses.total, wanted)
    torch.testing.assert_close(losses.nll, wanted.detach())
    assert not losses.nll.requires_grad
    torch.testing.assert_close(torch.autograd.grad(losses.total, of), torch.autograd.grad(wanted, of))


@torch.no_grad()
def test_log_probs_cover_all_words_and_sum_to_one() -> None:
    adaptive, (features_BTD, _) = head(), example()
    log_p_BTV = adaptive.log_probs(features_BTD)
    assert (log_p_BTV.shape, log_p_BTV.dtype) == ((3, 7, V), torch.float32)
    torch.testing.assert_close(log_p_BTV.logsumexp(-1), torch.zeros(3, 7))
    wanted_V = torch.stack([naive_log_p(adaptive, features_BTD[1, 2], word) for word in range(V)]).float()
    torch.testing.assert_close(log_p_BTV[1, 2], wanted_V)


@torch.no_grad()
def test_target_log_probs_read_only_one_band_per_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_POSITIONS", 3)
    adaptive, (features_BTD, target_BT) = head(), example()
    features_ND, target_N = features_BTD.flatten(0, 1), target_BT.flatten()
    wanted_N = adaptive.log_probs(features_ND).gather(1, target_N[:, None]).squeeze(1)
    torch.testing.assert_close(adaptive.target_log_probs(features_ND, target_N), wanted_N)
    assert adaptive.target_log_probs(features_ND[:0], target_N[:0]).shape == (0,)
    with Measure() as measure:
        adaptive.target_log_probs(features_ND, target_N)
    assert measure.largest < len(target_N) * V


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_temperature_raises_probabilities_to_a_power(temperature: float) -> None:
    adaptive, (features_BTD, _) = head(), example()
    powers_BTV = adaptive.log_probs(features_BTD).exp() ** (1 / temperature)
    wanted = powers_BTV / powers_BTV.sum(-1, keepdim=True)
    torch.testing.assert_close(adaptive.log_probs(features_BTD, temperature=temperature).exp(), wanted)


def test_loss_equals_torch_adaptive_softmax() -> None:
    torch.manual_seed(2)
    oracle = nn.AdaptiveLogSoftmaxWithLoss(D, V, list(BANDS.starts[1:]), div_value=FACTOR).double()
    adaptive, (features_BTD, target_BT) = head(), example()
    with torch.no_grad():
        adaptive.bands[0].copy_(oracle.head.weight[: BANDS.sizes[0]])
        adaptive.classes.copy_(oracle.head.weight[BANDS.sizes[0] :])
        for ours_DE, ours_WE, (project, words) in zip(
            adaptive.projections, adaptive.bands[1:], oracle.tail, strict=True
        ):
            ours_DE.copy_(project.weight.T)
            ours_WE.copy_(words.weight)
    kept = target_BT != PAD
    wanted = oracle(features_BTD[kept], target_BT[kept])
    torch.testing.assert_close(adaptive(features_BTD, target_BT).total, -wanted.output.sum())
    torch.testing.assert_close(
        adaptive.log_probs(features_BTD.flatten(0, 1)), oracle.log_prob(features_BTD.flatten(0, 1)).float()
    )


def test_gradients_pass_gradcheck() -> None:
    adaptive, (features_BTD, target_BT) = head(), example()
    assert torch.autograd.gradcheck(lambda x_BTD: adaptive(x_BTD, target_BT).total, (features_BTD,))


def test_unused_band_is_skipped_and_has_zero_gradient() -> None:
    adaptive, (features_BTD, target_BT) = head(), example(words=BANDS.starts[2])
    wanted = adaptive(features_BTD, target_BT).total
    with torch.no_grad():
        adaptive.bands[2].fill_(torch.nan)
        adaptive.projections[1].fill_(torch.nan)
    losses = adaptive(features_BTD, target_BT)
    losses.total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.total, wanted)
    for parameter in adaptive.parameters():
        assert parameter.grad is not None  # DistributedDataParallel requires a gradient
    assert not adaptive.bands[2].grad.any()  # type: ignore[union-attr]
    assert adaptive.bands[1].grad.any()  # type: ignore[union-attr]


def test_padded_targets_are_skipped() -> None:
    adaptive, (features_BTD, target_BT) = head(), example()
    loud = features_BTD.detach().clone()
    loud[target_BT == PAD] = torch.nan
    torch.testing.assert_close(adaptive(loud, target_BT).total, adaptive(features_BTD, target_BT).total)
    nothing = adaptive(features_BTD, torch.full_like(target_BT, PAD))
    nothing.total.backward()  # type: ignore[no-untyped-call]
    assert nothing.total.item() == nothing.nll.item() == 0
    assert not any(parameter.grad.any() for parameter in adaptive.parameters())  # type: ignore[union-attr]


@pytest.mark.skipif(naive_mode(), reason="Only the fast form has a memory bound.")
def test_only_one_chunk_of_logits_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", 4096)
    bands = AdaptiveConfig(cutoffs=(100, 500)).bands(1000)
    adaptive = AdaptiveHead(bands, dim=4, factor=1.0)
    features_BTD = torch.randn(4, 500, 4, requires_grad=True)
    with Measure() as measure:
        adaptive(features_BTD, torch.randint(2, 1000, (4, 500))).total.backward()  # type: ignore[no-untyped-call]
    assert measure.largest <= 2000 * 4  # the size of the features; all logits have at least 2000 × 102 elements


def test_a_band_may_have_one_word() -> None:
    adaptive = AdaptiveHead(AdaptiveConfig(cutoffs=(6, V - 1)).bands(V), dim=D, factor=FACTOR).double()
    features_BTD, target_BT = example()
    target_BT[0, :2] = V - 1
    losses = adaptive(features_BTD, target_BT)
    losses.total.backward()  # type: ignore[no-untyped-call]
    kept_BT = target_BT != PAD
    log_p_N = adaptive.target_log_probs(features_BTD[kept_BT].detach(), target_BT[kept_BT])
    torch.testing.assert_close(losses.nll, -log_p_N.sum().to(losses.nll.dtype), atol=1e-4, rtol=0)


def test_label_smoothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"criterion\.label_smoothing=0\.1"):
        head().check_label_smoothing(0.1)


def test_loss_under_autocast_is_near_float32() -> None:
    adaptive = head().float()
    features_BTD, target_BT = example()
    features_BTD = features_BTD.float()
    exact = adaptive(features_BTD, target_BT)
    gradient = torch.autograd.grad(exact.total, adaptive.bands[1])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = adaptive(features_BTD, target_BT)
        log_p_BTV = adaptive.log_probs(features_BTD)
    assert rough.total.dtype == log_p_BTV.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact.total.item(), rel=0.01)
    rough_gradient = torch.autograd.grad(rough.total, adaptive.bands[1])[0]
    assert rough_gradient.dtype == torch.float32
    assert (rough_gradient - gradient).norm() < 0.05 * gradient.norm()


def test_dropout_acts_in_training_only() -> None:
    adaptive, (features_BTD, target_BT) = head(dropout=0.5), example()
    assert adaptive(features_BTD, target_BT).total != head()(features_BTD, target_BT).total
    adaptive.eval()
    torch.testing.assert_close(adaptive(features_BTD, target_BT).total, head()(features_BTD, target_BT).total)


def test_tied_tables_share_one_parameter() -> None:
    tokens = embedding()
    tied = AdaptiveHead(BANDS, dim=D, factor=FACTOR, tied_to=tokens, tie_projections=True)
    assert all(mine is table.weight for mine, table in zip(tied.bands, tokens.bands, strict=True))
    assert all(mine is its.weight for mine, its in zip(tied.projections, tokens.projections[1:], strict=True))
    both = nn.ModuleList([tokens, tied])
    of_bands = sum(size * width + D * width for size, width in zip(BANDS.sizes, (8, 4, 2), strict=True))
    assert sum(parameter.numel() for parameter in both.parameters()) == of_bands + 2 * D


def test_tokens_are_embedded_by_the_table_of_their_band() -> None:
    tokens = embedding()
    tokens_BT = torch.tensor([[22, 4, 13, PAD], [12, 6, 5, 13]])
    x_BTD = tokens(tokens_BT)
    for row, column in itertools.product(range(2), range(4)):
        token = int(tokens_BT[row, column])
        band = sum(token >= start for start in BANDS.starts[1:])
        vector_E = tokens.bands[band].weight[token - BANDS.starts[band]]
        torch.testing.assert_close(x_BTD[row, column], tokens.projections[band].weight @ vector_E)
    assert not x_BTD[0, 3].any()  # PAD
    x_BTD.sum().backward()
    assert not tokens.bands[0].weight.grad[PAD].any()
    assert tokens.bands[2].weight.grad.any(dim=1).tolist() == [True] + [False] * 8 + [True]


def test_unused_embedding_band_has_zero_gradient() -> None:
    tokens = embedding()
    tokens(torch.tensor([[4, 5]])).sum().backward()
    assert [bool(parameter.grad.any()) for parameter in tokens.parameters()] == [True, False, False, True, False, False]


def test_table_std_is_the_inverse_root_of_the_width() -> None:
    torch.manual_seed(1)
    tokens = AdaptiveEmbedding(AdaptiveConfig(cutoffs=(3000,)).bands(9000), dim=64, factor=4)
    for table, width in zip(tokens.bands, (64, 16), strict=True):
        assert table.weight.std().item() == pytest.approx(width**-0.5, rel=0.02)
    bound = math.sqrt(6 / (64 + 16))
    assert bound * 0.95 < tokens.projections[1].weight.abs().max().item() <= bound


@pytest.mark.parametrize(
    ("cutoffs", "words"),
    [
        ((), r"cutoffs=\[\] are not valid"),
        ((3, 9), r"the first must be at least 4"),
        ((9, 9), r"cutoffs=\[9, 9\] are not valid: cutoffs must increase"),
        ((9, 7), r"must increase"),
        ((9, 23), r"must be below the vocabulary size, 23"),
        ((9, 60_000), r"cutoffs=\[9, 60000\] are not valid"),
    ],
)
def test_invalid_cutoffs_are_refused(cutoffs: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        AdaptiveConfig(cutoffs=cutoffs).bands(V)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("factor", [0.5, 4.0, math.inf])
def test_factor_that_gives_zero_width_is_refused(factor: float) -> None:
    with pytest.raises(UserError, match="not possible with dim=8 and 3 bands"):
        BANDS.widths(D, factor)
