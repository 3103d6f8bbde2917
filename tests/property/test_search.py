"""Properties of beam search for any model, batch and options."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from seqtk.data.vocabulary import BOS, EOS, PAD
from seqtk.generation.beams import best
from seqtk.generation.search import SearchConfig, search
from tests.unit.generation.tiny import Table, batch_of, vocabulary

WORDS = 5
SIZE = WORDS + 4


@some.composite
def searches(draw):
    beam = draw(some.integers(1, 6))
    grows, longest = draw(some.sampled_from([0.0, 0.5, 1.3])), draw(some.integers(0, 6))
    return SearchConfig(
        beam=beam,
        nbest=draw(some.integers(1, beam)),
        length_penalty=draw(some.sampled_from([0.0, 0.6, 1.0, 2.0])),
        normalize_scores=draw(some.booleans()),
        unk_penalty=draw(some.sampled_from([0.0, 1.0])),
        min_length=draw(some.integers(0, 3 if grows else min(3, max(longest, 1)))),
        max_length_a=grows,
        max_length_b=longest,
        no_repeat_ngram=draw(some.integers(0, 3)),
        temperature=draw(some.sampled_from([0.5, 1.0])),
    )


@settings(max_examples=25)
@given(config=searches(), lengths=some.lists(some.integers(0, 6), min_size=1, max_size=6), seed=some.integers(0, 10**6))
def test_every_hypothesis_obeys_the_search_options(config, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    model = Table(3 * torch.randn(7, SIZE, SIZE, generator=generator))
    rows = [np.append(np.full(length, 4), EOS) for length in lengths]
    found = search([model], batch_of(rows), config, vocabulary=vocabulary(WORDS))
    assert len(found) == len(rows)
    for row, hypotheses in zip(rows, found, strict=True):
        limit = int(config.max_length_a * len(row) + config.max_length_b)
        assert 1 <= len(hypotheses) <= config.nbest
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({hypothesis.tokens for hypothesis in hypotheses}) == len(hypotheses)
        for hypothesis in hypotheses:
            *words, last = hypothesis.tokens
            assert last == EOS
            assert not {BOS, PAD, EOS} & set(words)
            assert min(config.min_length, limit) <= len(words) <= limit
            assert len(hypothesis.token_scores) == len(hypothesis.tokens)
            n = config.no_repeat_ngram
            grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)] if n else []
            assert len(grams) == len(set(grams))
    alone = [search([model], batch_of([row]), config, vocabulary=vocabulary(WORDS))[0] for row in rows]
    assert [[h.tokens for h in hypotheses] for hypotheses in found] == [[h.tokens for h in one] for one in alone]


@given(
    rows=some.integers(1, 4), size=some.integers(1, 40), count=some.integers(1, 12), levels=some.integers(1, 5),
    seed=some.integers(0, 10**6),
)  # fmt: skip
def test_top_scores_equal_a_stable_sort(rows, size, count, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    scores_BN = torch.randint(0, levels, (rows, size), generator=generator).float()
    values, indices = best(scores_BN, count=count)
    expected = scores_BN.sort(dim=1, descending=True, stable=True)
    known = min(size, count)
    assert values[:, :known].equal(expected.values[:, :known])
    assert indices[:, :known].equal(expected.indices[:, :known])
    assert (values[:, known:] == -torch.inf).all()
