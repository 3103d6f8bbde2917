import itertools
import math

import numpy as np
import pytest
import torch

from seqtk.data.vocabulary import BOS, EOS, PAD, UNK
from seqtk.errors import UserError
from seqtk.generation.scoring import score
from seqtk.generation.search import Hypothesis, SearchConfig, best, search
from tests.unit.generation.tiny import Table, batch_of, sources, transformer, vocabulary


def run(models, rows, prefix=None, words=12, **options):
    models = models if isinstance(models, list) else [models]
    config = SearchConfig(**{"max_length_b": 12, **options})
    return search(models, batch_of(rows), config, vocabulary=vocabulary(words), prefix_BP=prefix)


def brute_force(log_p_TVV: torch.Tensor, *, longest: int, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Every sequence of at most `longest` tokens and EOS with its score, best first."""
    words = [UNK, *range(4, log_p_TVV.shape[1])]
    scored = []
    for length in range(longest + 1):
        for sentence in itertools.product(words, repeat=length):
            tokens = (*sentence, EOS)
            total = sum(
                float(log_p_TVV[position, previous, token])
                for position, (previous, token) in enumerate(itertools.pairwise((EOS, *tokens)))
            )
            scored.append((total / len(tokens) ** length_penalty, tokens))
    return sorted(scored, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 0.6])
def test_a_beam_of_full_width_is_brute_force(length_penalty):
    torch.manual_seed(int(length_penalty * 10))
    logits_TVV = 2 * torch.randn(4, 6, 6)
    # No probability for what may not be generated, so that nothing is renormalised.
    logits_TVV[:, :, [BOS, PAD]] = -torch.inf
    expected = brute_force(torch.log_softmax(logits_TVV, -1), longest=3, length_penalty=length_penalty)
    found = run(
        Table(logits_TVV), [np.array([EOS])], words=2, beam=200, nbest=40, min_length=0, max_length_b=3,
        length_penalty=length_penalty,
    )[0]  # fmt: skip
    assert len(found) == len(expected) == 1 + 3 + 9 + 27
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected][:40]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected][:40], abs=1e-5)
