"""Scoring a token stream: each token is scored once, for any batch size, and scores equal a plain float64 loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from seqtk.data.blocks import BreakMode, ContextBlocks
from seqtk.data.indexed import IndexedDataset
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.plan import BatchingConfig
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.sources.databin import DataBin
from seqtk.data.vocabulary import EOS, UNK
from seqtk.generation.evaluation import StreamScores, score_stream
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.utils.errors import UserError
from tests.unit.models.test_language_model import batch_of

WORDS = 20
CPU = torch.device("cpu")


def tiny(*, seed: int = 3, words: int = WORDS) -> TransformerLM:
    torch.manual_seed(seed)
    config = TransformerLMConfig(dim=16, ffn_dim=24, heads=2, layers=1, max_length=24, tie_embeddings=False)
    model = TransformerLM(config, vocabulary=words).eval()
    with torch.no_grad():
        model.head.weight.mul_(4)  # so that probabilities are not almost equal
    return model


@pytest.fixture
def items(tmp_path: Path) -> IndexedDataset:
    """Returns a data set with lines of zero to nine random words and EOS. Some words are unknown."""
    generator = np.random.default_rng(1)
    with IndexedWriter(tmp_path / "test", vocabulary_size=WORDS) as writer:
        for size in generator.integers(0, 10, size=40):
            writer.append([*generator.integers(UNK, WORDS, size=size), EOS])
    return IndexedDataset(tmp_path / "test")


def scored(
    items: IndexedDataset, *models: TransformerLM, mode: BreakMode = "none", window: int = 0, max_tokens: int = 100
) -> StreamScores:
    blocks = ContextBlocks(items, break_mode=mode, tokens_per_sample=12, context_window=window)
    return score_stream(models, blocks, batching=BatchingConfig(max_tokens=max_tokens), device=CPU)


@torch.no_grad()
def one_at_a_time(model: TransformerLM, read: list[int], target: int) -> float:
    """Returns the log-probability of a token given its context, computed from the logits of the head."""
    last_D = model(batch_of(torch.tensor([read])))[0][0, -1]
    return float(functional.log_softmax(model.head.weight @ last_D, dim=0)[target])


def naive(
    model: TransformerLM, stream: list[int], blocks: ContextBlocks, which: range, *, window: int
) -> dict[int, float]:
    """Returns position in the stream → log-probability of its token, for the blocks in `which`."""
    found = {}
    previous = [EOS, *stream]
    for start, end in blocks.bounds_K2[which].tolist():
        for place in range(start, end):
            read = previous[max(0, start - window) : place + 1]
            found[place] = one_at_a_time(model, read, stream[place])
    return found


@pytest.mark.parametrize("window", [0, 5, 11])
def test_scores_equal_a_float64_loop(items: IndexedDataset, window: int) -> None:
    scores = scored(items, tiny(), window=window)
    stream = items.stream(0, items.total).tolist()
    blocks = ContextBlocks(items, break_mode="none", tokens_per_sample=12, context_window=window)
    wanted = naive(tiny().double(), stream, blocks, range(len(blocks)), window=window)
    assert sorted(wanted) == list(range(items.total))
    np.testing.assert_allclose(scores.log_p_N, list(wanted.values()), rtol=1e-4, atol=1e-5)
    assert -scores.nll == pytest.approx(sum(wanted.values()), rel=1e-6)
    assert (scores.tokens, scores.unknown) == (items.total, stream.count(UNK))


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc", "eos"])
@pytest.mark.parametrize("window", [0, 4])
def test_every_token_is_scored_once(items: IndexedDataset, mode: BreakMode, window: int) -> None:
    each = [scored(items, tiny(), mode=mode, window=window, max_tokens=size) for size in (1, 30, 4000)]
    separators = int((items.sizes == 1).sum()) if mode == "complete_doc" else 0
    advances: list[int] = []
    blocks = ContextBlocks(items, break_mode=mode, tokens_per_sample=12, context_window=window)
    score_stream([tiny()], blocks, batching=BatchingConfig(max_tokens=30), device=CPU, advance=advances.append)
    assert sum(advances) == items.total - separators
    for scores in each:
        assert scores.tokens == items.total - separators
        np.testing.assert_allclose(scores.log_p_N, each[0].log_p_N, rtol=0, atol=1e-5)


def test_ensemble_averages_probabilities(items: IndexedDataset) -> None:
    one, other = (scored(items, tiny(seed=seed)).log_p_N for seed in (1, 2))
    both = scored(items, tiny(seed=1), tiny(seed=2)).log_p_N
    np.testing.assert_allclose(np.exp(both), (np.exp(one) + np.exp(other)) / 2, rtol=1e-5)


def test_long_samples_and_nan_scores_are_refused(items: IndexedDataset) -> None:
    blocks = ContextBlocks(items, break_mode="none", tokens_per_sample=25)
    with pytest.raises(UserError, match="tokens_per_sample=24"):
        score_stream([tiny()], blocks, batching=BatchingConfig(), device=CPU)
    diverged = tiny()
    with torch.no_grad():
        diverged.head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        scored(items, diverged)
    with pytest.raises(ValueError, match="eval mode"):
        scored(items, tiny().train())


@pytest.mark.parametrize(("split", "tokens"), [("valid", 217_646), ("test", 245_569)])
@pytest.mark.slow
def test_every_token_of_wikitext_103_is_scored(real_data: Path, tmp_path: Path, split: str, tokens: int) -> None:
    """All tokens have scores. Some scores at the start, in the middle and at the end are compared with a plain loop."""
    text = f"{real_data}/wikitext/wikitext103.{split}.tokens"
    preprocess(PreprocessConfig(tokens="words", train=text, test=(text,), nwords=500, destdir=f"{tmp_path}/bin"))
    data = DataBin(tmp_path / "bin")
    model = tiny(words=len(data.vocabulary()))
    blocks = ContextBlocks(data.split("test"), break_mode="none", tokens_per_sample=24, context_window=8)
    scores = score_stream([model], blocks, batching=BatchingConfig(max_tokens=20_000), device=CPU)
    assert scores.tokens == tokens == len(scores.log_p_N)
    stream = blocks.items.stream(0, blocks.items.total).tolist()
    wanted: dict[int, float] = {}
    for start in (0, len(blocks) // 2, len(blocks) - 10):
        wanted |= naive(model.double(), stream, blocks, range(start, start + 10), window=8)
    assert len(wanted) > 460
    ours = scores.log_p_N[list(wanted)].astype(np.float64).sum()
    assert ours == pytest.approx(sum(wanted.values()), rel=1e-6)
