"""Sampling follows the probabilities, draws only allowed tokens, and depends only on the seed and the example."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.data.batch import pad_rows
from seqtk.data.plan import BatchingConfig
from seqtk.data.vocabulary import EOS, UNK
from seqtk.generation.config import SearchConfig
from seqtk.generation.decode import BatchGenerator, BatchTranslator, Sentence, decode_in_order
from seqtk.generation.sampling import draw, uniform_numbers
from seqtk.generation.scoring import score
from seqtk.generation.search import Hypothesis, search
from seqtk.models.language_model import TransformerLM
from seqtk.utils.errors import UserError
from tests.unit.generation.test_evaluation import WORDS as LM_WORDS
from tests.unit.generation.test_evaluation import tiny
from tests.unit.generation.tiny import Table, batch_of, sources, transformer, vocabulary
from tests.unit.models.test_language_model import batch_of as language_batch_of

WORDS = 8
EVERY = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
"""Evenly spaced random numbers, which select every candidate with a probability above 1/2000."""


def sampling(**changes: Any) -> SearchConfig:
    return SearchConfig(**{"sampling": True, "max_length_b": 6, **changes})


def tokens_of(found: list[list[Hypothesis]]) -> list[list[tuple[int, ...]]]:
    return [[text.tokens for text in texts] for texts in found]


def naive_candidates(p: Sequence[float], *, top_k: int, top_p: float, min_p: float) -> list[int]:
    """Returns the ids of the candidates, computed from their definition in a loop over tokens."""
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    kept, total = [], 0.0
    for token in order[: top_k or len(p)]:
        if total >= top_p or p[token] < min_p * p[order[0]]:
            break
        kept.append(token)
        total += p[token]
    return sorted(kept)


@settings(max_examples=80)
@given(
    weights=st.lists(st.integers(1, 12), min_size=3, max_size=9),
    top_k=st.integers(0, 10),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.31, 0.01]),
    min_p=st.sampled_from([0.0, 0.1, 0.37, 1.0]),
)
def test_candidates_equal_a_plain_loop(weights: list[int], top_k: int, top_p: float, min_p: float) -> None:
    log_p_V = (torch.tensor(weights).double() / sum(weights)).log().float()
    p = log_p_V.double().softmax(0).tolist()
    wanted = naive_candidates(p, top_k=top_k, top_p=top_p, min_p=min_p)
    drawn = draw(log_p_V.expand(len(EVERY), -1).clone(), EVERY, top_k=top_k, top_p=top_p, min_p=min_p)
    counts = torch.bincount(drawn, minlength=len(weights)) / len(EVERY)
    assert counts.nonzero().squeeze(1).tolist() == wanted
    mass = sum(p[token] for token in wanted)
    for token in wanted:
        assert float(counts[token]) == pytest.approx(p[token] / mass, abs=2e-3)


def test_banned_tokens_are_not_drawn() -> None:
    log_p_RV = torch.tensor([[-torch.inf, 0.1, 0.2, -torch.inf]]).repeat(2, 1)
    assert draw(log_p_RV, torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)).tolist() == [1, 2]
    assert draw(torch.full((1, 5), -torch.inf), torch.zeros(1).double()).tolist() == [EOS]
    with pytest.raises(UserError, match="NaN"):
        draw(torch.full((1, 5), torch.nan), torch.zeros(1).double())


def test_token_frequencies_equal_their_probabilities() -> None:
    """A χ² test compares the frequencies of all texts of up to two tokens, at temperature 1.3, with probabilities."""
    torch.manual_seed(0)
    table = Table(torch.randn(3, WORDS, WORDS))
    names = vocabulary(WORDS - 4)
    config = sampling(nbest=500, temperature=1.3, max_length_b=2, min_length=0)
    found = search([table], batch_of([np.array([EOS])] * 40), config, vocabulary=names)
    counts = Counter(text.tokens for texts in found for text in texts)
    log_p = table.head.log_probs(table.logits_TVV, temperature=1.3)
    log_p[:, :, names.never_generated] = -torch.inf
    p = log_p.softmax(-1).double()
    able = [token for token in range(WORDS) if token not in (EOS, *names.never_generated)]
    wanted = {(EOS,): float(p[0, EOS, EOS])}
    wanted |= {(a, EOS): float(p[0, EOS, a] * p[1, a, EOS]) for a in able}
    wanted |= {(a, b, EOS): float(p[0, EOS, a] * p[1, a, b]) for a in able for b in able}
    assert sum(wanted.values()) == pytest.approx(1)
    assert counts.keys() <= wanted.keys()
    total = counts.total()
    assert total == 20_000
    square = sum((counts[text] - total * share) ** 2 / (total * share) for text, share in wanted.items())
    freedom = len(wanted) - 1
    assert square < freedom + 4 * math.sqrt(2 * freedom)


def translations(rows: Sequence[np.ndarray], *, batching: BatchingConfig, **changes: Any) -> list[list[Hypothesis]]:
    decoder = BatchTranslator((transformer(WORDS, seed=1),), vocabulary(WORDS), search=sampling(nbest=3, **changes))
    return [translation.hypotheses for translation in decode_in_order(map(Sentence, rows), decoder, batching=batching)]


def test_sampling_is_batch_invariant() -> None:
    rows = sources(12, words=WORDS, seed=2)
    together = translations(rows, batching=BatchingConfig())
    alone = translations(rows, batching=BatchingConfig(max_sentences=1))
    assert [[text.tokens for text in texts] for texts in alone] == [
        [text.tokens for text in texts] for texts in together
    ]
    assert len({text.tokens for texts in together for text in texts}) > 25
    other = translations(rows, batching=BatchingConfig(), seed=2)
    assert sum(one != another for one, another in zip(together, other, strict=True)) > 8
    same = translations([rows[0]] * 5, batching=BatchingConfig())
    assert len({texts[0].tokens for texts in same}) > 2  # equal lines have different outputs


def test_samples_do_not_depend_on_nbest_and_max_length() -> None:
    model, rows, names = transformer(WORDS, seed=1), batch_of(sources(4, words=WORDS, seed=2)), vocabulary(WORDS)
    few, many = (search([model], rows, sampling(nbest=count), vocabulary=names) for count in (2, 7))
    assert tokens_of(few) == [texts[:2] for texts in tokens_of(many)]
    short, long = (uniform_numbers([3, 5], seed=1, samples=2, length=length) for length in (4, 9))
    assert torch.equal(short, long[:, :4])
    assert len(long.unique()) == long.numel()
    assert torch.equal(uniform_numbers([5], seed=1, samples=1, length=4), short[2:3])


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_sampling_from_one_candidate_is_greedy_search(changes: dict[str, Any]) -> None:
    model, rows, names = transformer(WORDS, seed=1), batch_of(sources(9, words=WORDS, seed=3)), vocabulary(WORDS)
    greedy = search([model], rows, SearchConfig(beam=1, max_length_b=6), vocabulary=names)
    drawn = search([model], rows, sampling(**changes), vocabulary=names)
    assert tokens_of(drawn) == tokens_of(greedy)


def test_sampled_scores_equal_scores_of_given_targets() -> None:
    model, names = transformer(WORDS, seed=1), vocabulary(WORDS)
    rows = sources(6, words=WORDS, seed=4)
    for texts, row in zip(
        search([model], batch_of(rows), sampling(nbest=2, top_k=3), vocabulary=names), rows, strict=True
    ):
        for text in texts:
            pair = BatchTranslator((model,), names).collate([Sentence(row, target=np.array(text.tokens))])
            (wanted,) = score([model], pair)  # type: ignore[arg-type]
            assert text.token_scores == pytest.approx(wanted.token_scores, abs=1e-4)
            assert text.score == pytest.approx(sum(text.token_scores) / len(text.tokens))


def test_sampling_obeys_the_constraints() -> None:
    table = Table(torch.zeros(1, 6, 6))
    found = search(
        [table],
        batch_of([np.array([EOS])]),
        sampling(nbest=20, min_length=4, max_length_b=9, no_repeat_ngram=1, unk_penalty=math.inf),
        vocabulary=vocabulary(2),
    )[0]
    assert {text.tokens for text in found} == {
        (4, 5, EOS),
        (5, 4, EOS),
    }  # no word is left, and EOS comes before min_length
    assert {text.score for text in found} == {-math.inf}


PROMPTS = [[], [5], [6, 7, 8], [5, 9, 9, 4, 12, 11, 7]]


def language_decoder(model: TransformerLM, config: SearchConfig) -> BatchGenerator:
    return BatchGenerator((model,), vocabulary(LM_WORDS - 4), search=config)


def continued(
    model: TransformerLM, config: SearchConfig, given: Sequence[list[int]] = PROMPTS
) -> list[list[Hypothesis]]:
    sentences = [Sentence(np.array([*ids, EOS]), prefix=np.array(ids, dtype=np.int64), source_text="") for ids in given]
    decoder = language_decoder(model, config)
    return [text.hypotheses for text in decode_in_order(sentences, decoder, batching=BatchingConfig())]


@torch.no_grad()
def greedy(model: TransformerLM, given: list[int], *, most: int) -> list[int]:
    """Returns the tokens of greedy decoding, which computes the features of the whole window for each token."""
    text, window = list(given), [EOS]
    for token in given:
        window = [*(window[-12:] if len(window) == 24 else window), token]
    while len(text) < len(given) + most:
        log_p_V = model.head.log_probs(model(language_batch_of(torch.tensor([window])))[0][0, -1])
        log_p_V[[0, 1, UNK]] = -torch.inf
        if len(text) == len(given):
            log_p_V[EOS] = -torch.inf  # min_length=1
        token = int(log_p_V.argmax())
        if token == EOS:
            break
        text.append(token)
        window = [*(window[-12:] if len(window) == 24 else window), token]
    return [*text, EOS]


@pytest.mark.parametrize("config", [sampling(top_k=1), SearchConfig(beam=1)])
def test_prompts_of_any_length_are_continued(config: SearchConfig) -> None:
    model = tiny(seed=5)
    with torch.no_grad():
        model.head.weight[EOS] = -1  # makes EOS unlikely
    given = [*PROMPTS, [4 + place % 16 for place in range(60)]]
    found = continued(model, replace(config, max_length_b=40), given)
    for texts, ids in zip(found, given, strict=True):
        wanted = greedy(model, ids, most=40)
        assert list(texts[0].tokens) == wanted
    assert max(len(texts[0].tokens) for texts in found) > 60


def test_continuing_prompts_is_batch_invariant() -> None:
    model = tiny()
    config = sampling(nbest=4, max_length_b=30)
    together = continued(model, config)
    for number, ids in enumerate(PROMPTS):
        alone = search(
            [model],
            language_decoder(model, config).collate([Sentence(np.array([EOS]), index=number)]),
            config,
            vocabulary=vocabulary(LM_WORDS - 4),
            prefix_BP=pad_rows([np.array(ids, dtype=np.int64)]) if ids else None,
        )[0]
        assert tokens_of([alone]) == tokens_of(together[number : number + 1])
        assert all(text.tokens[: len(ids)] == tuple(ids) for text in alone)
        assert all(len(ids) + 1 <= len(text.tokens) - 1 <= len(ids) + 30 for text in alone)


def test_beam_search_continues_prompts() -> None:
    model = tiny()
    one, many = (continued(model, SearchConfig(beam=beam, nbest=beam, max_length_b=5)) for beam in (1, 8))
    for narrow, wide in zip(one, many, strict=True):
        assert len(wide) == 8
        assert wide[0].score >= narrow[0].score - 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -1}, "top_k=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"length_penalty": math.nan}, "length_penalty"),
        ({"length_penalty": 1000.0}, "length_penalty"),
        ({"max_length_a": math.inf}, "max_length_a"),
        ({"unk_penalty": math.nan}, "unk_penalty"),
        ({"nbest": 0}, "nbest=0"),
        ({"sampling": False, "top_p": 0.9}, "sampling=true"),
        ({"sampling": None, "nbest": 9}, "sampling=true"),
    ],
)
def test_error_names_the_invalid_setting(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sampling(**changes).check()
