import itertools

import numpy as np
import pytest
import torch

from seqtk.data.batch import collate_pairs
from seqtk.data.vocabulary import BOS, EOS, PAD, UNK
from seqtk.generation.beams import best
from seqtk.generation.scoring import score
from seqtk.generation.search import Hypothesis, SearchConfig, search
from seqtk.utils.errors import UserError
from tests.unit.generation.tiny import Table, batch_of, sharpen, sources, transformer, vocabulary

WORDS = 12


def run(models, rows, prefix=None, words=WORDS, **options):
    models = models if isinstance(models, list) else [models]
    config = SearchConfig(**{"max_length_b": 12, **options})
    return search(models, batch_of(rows), config, vocabulary=vocabulary(words), prefix_BP=prefix)


def strings(found):
    return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]


def scores(found):
    return [hypothesis.score for hypotheses in found for hypothesis in hypotheses]


@pytest.fixture(scope="module")
def model():
    return transformer(WORDS, seed=1)


@pytest.fixture(scope="module")
def rows():
    return sources(20, words=WORDS, seed=1)


def flat_table(words: int, *, length: int) -> torch.Tensor:
    size = len(vocabulary(words))
    return torch.zeros(length, size, size)


def brute_force(log_p_TVV: torch.Tensor, *, longest: int, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Returns (score, tokens) of every sequence of at most `longest` tokens and EOS, best first."""
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
def test_full_width_beam_equals_brute_force(length_penalty):
    torch.manual_seed(int(length_penalty * 10))
    logits_TVV = 2 * torch.randn(4, 6, 6)
    # BOS and PAD have probability 0, because search never generates them.
    logits_TVV[:, :, [BOS, PAD]] = -torch.inf
    expected = brute_force(torch.log_softmax(logits_TVV, -1), longest=3, length_penalty=length_penalty)
    found = run(
        Table(logits_TVV), [np.array([EOS])], words=2, beam=200, nbest=40, min_length=0, max_length_b=3,
        length_penalty=length_penalty,
    )[0]  # fmt: skip
    assert len(found) == len(expected) == 1 + 3 + 9 + 27
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected]
    assert scores([found]) == pytest.approx([value for value, _ in expected], abs=1e-5)


@pytest.mark.parametrize(("beam", "sharpness", "count"), [(1, 1.0, 15), (5, 6.0, 65)])
def test_beam_search_is_batch_invariant(beam, sharpness, count):
    sharp = transformer(WORDS, seed=2, sharpness=sharpness)
    rows = sources(count, words=WORDS, seed=2)
    options = {"beam": beam, "nbest": beam, "max_length_a": 0.5, "max_length_b": 2}
    alone = [run(sharp, [row], **options)[0] for row in rows]
    assert len({hypotheses[0].tokens for hypotheses in alone}) > count // 5
    for size in (7, 64):
        order = np.random.default_rng(size).permutation(len(rows))
        for start in range(0, len(rows), size):
            chunk = order[start : start + size]
            together = run(sharp, [rows[index] for index in chunk], **options)
            expected = [alone[index] for index in chunk]
            assert strings(together) == strings(expected)
            assert scores(together) == pytest.approx(scores(expected), abs=1e-5)


def test_beam_size_1_equals_greedy_search(model, rows):
    found = run(model, rows, beam=1, min_length=0)
    for row, (hypothesis,) in zip(rows, found, strict=True):
        state, token, expected = model.start(batch_of([row])), EOS, []
        while len(expected) < 12 and (not expected or token != EOS):
            features, state = model.step(torch.tensor([token]), state)
            log_p = model.head.log_probs(features)[0, 0]
            log_p[[BOS, PAD]] = -torch.inf
            token = int(log_p.argmax())
            expected.append(token)
        assert hypothesis.tokens[: len(expected)] == tuple(expected)


def test_search_scores_equal_scores_of_given_targets(model, rows):
    for hypothesis, row in zip(itertools.chain(*run(model, rows)), rows, strict=True):
        (given,) = score([model], collate_pairs([(0, row, np.array(hypothesis.tokens))]))
        assert given.tokens == hypothesis.tokens
        assert given.token_scores == pytest.approx(hypothesis.token_scores, abs=1e-5)
        assert given.score == pytest.approx(hypothesis.score, abs=1e-5)


def test_hypotheses_are_distinct_and_best_first(model, rows):
    for hypotheses in run(model, rows, beam=6, nbest=6):
        assert len(hypotheses) == len({hypothesis.tokens for hypothesis in hypotheses}) == 6
        assert scores([hypotheses]) == sorted(scores([hypotheses]), reverse=True)


def test_wider_beam_has_no_lower_score(model, rows):
    options = {"normalize_scores": False, "max_length_b": 5}
    narrow, wide = (scores(run(model, rows, beam=beam, **options)) for beam in (1, 8))
    assert sum(wide) >= sum(narrow)


@pytest.mark.parametrize(("length_penalty", "normalize"), [(0.0, True), (0.6, True), (2.0, True), (1.0, False)])
def test_length_penalty_is_an_exponent_of_the_length(model, rows, length_penalty, normalize):
    for (hypothesis,) in run(model, rows, length_penalty=length_penalty, normalize_scores=normalize):
        divisor = len(hypothesis.tokens) ** length_penalty if normalize else 1.0
        assert hypothesis.score == pytest.approx(sum(hypothesis.token_scores) / divisor)


def test_lengths_are_within_min_and_max_length(rows):
    eager = transformer(WORDS, seed=3)
    shortest = [len(hypothesis.tokens) for (hypothesis,) in run(eager, rows, min_length=7)]
    assert min(shortest) >= 8
    for row, (hypothesis,) in zip(rows, run(eager, rows, max_length_a=0.5, max_length_b=1, min_length=1), strict=True):
        assert len(hypothesis.tokens) <= len(row) // 2 + 2
    (only,) = run(eager, rows[:1], max_length_b=0)[0]
    assert only.tokens == (EOS,)


def test_max_length_overrides_min_length(model, rows):
    for (hypothesis,) in run(model, rows, min_length=9, max_length_a=0.01, max_length_b=3):
        assert len(hypothesis.tokens) == 4
        assert np.isfinite(hypothesis.score)


def test_length_is_limited_by_the_model(rows):
    short = transformer(WORDS, seed=1, max_target_length=5)
    longest = max(len(hypothesis.tokens) for (hypothesis,) in run(short, rows, min_length=20, max_length_b=200))
    assert longest == 5


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("beam", [1, 4])
def test_no_repeat_ngram_prevents_repeated_ngrams(n, beam):
    table = flat_table(WORDS, length=1)
    table[0, :, 5] = 9.0  # without the constraint, this word would repeat
    table[0, :, EOS] = -2.0
    for model in (Table(table), transformer(WORDS, seed=4)):
        for hypotheses in run(
            model, sources(8, words=WORDS, seed=4), beam=beam, nbest=beam, no_repeat_ngram=n, min_length=9
        ):
            for hypothesis in hypotheses:
                grams = list(zip(*(hypothesis.tokens[start:] for start in range(n)), strict=False))
                assert len(grams) == len(set(grams))


def test_repeats_are_allowed_by_default():
    table = flat_table(WORDS, length=1)
    table[0, :, 5] = 9.0
    assert run(Table(table), [np.array([EOS])], beam=1, max_length_b=4)[0][0].tokens == (5, 5, 5, 5, EOS)


def test_unk_penalty_is_subtracted_from_log_p_of_unk():
    table = flat_table(WORDS, length=1)
    table[0, :, UNK] = 5.0
    (plain,) = run(Table(table), [np.array([EOS])], beam=1, max_length_b=2)[0]
    (paid,) = run(Table(table), [np.array([EOS])], beam=1, max_length_b=2, unk_penalty=1.5)[0]
    assert plain.tokens == paid.tokens == (UNK, UNK, EOS)
    assert np.subtract(plain.token_scores, paid.token_scores) == pytest.approx([1.5, 1.5, 0.0], abs=1e-5)
    (avoided,) = run(Table(table), [np.array([EOS])], beam=1, max_length_b=2, unk_penalty=50.0)[0]
    assert UNK not in avoided.tokens


def test_banned_tokens_are_never_produced():
    table = flat_table(4, length=1)
    table[0, :, [BOS, PAD, 6, 7]] = 9.0
    found = search(
        [Table(table)],
        batch_of([np.array([EOS])]),
        SearchConfig(max_length_b=3, beam=2, nbest=2),
        vocabulary=vocabulary(2).padded(8),  # ids 4 and 5 are words, 6 and 7 are fillers
    )
    assert {token for hypothesis in found[0] for token in hypothesis.tokens} <= {EOS, UNK, 4, 5}


def test_prefix_begins_the_translation(model, rows):
    generator = np.random.default_rng(5)
    lengths = generator.integers(0, 4, size=len(rows))
    prefix = torch.full((len(rows), 4), PAD)
    for row, length in enumerate(lengths):
        prefix[row, :length] = torch.from_numpy(generator.integers(4, 4 + WORDS, size=length))
    found = run(model, rows, prefix=prefix, beam=4, nbest=2)
    free = run(model, rows, beam=4, nbest=2)
    for row, length in enumerate(lengths):
        for hypothesis in found[row]:
            assert hypothesis.tokens[:length] == tuple(prefix[row, :length].tolist())
            (given,) = score([model], collate_pairs([(0, rows[row], np.array(hypothesis.tokens))]))
            assert given.token_scores == pytest.approx(hypothesis.token_scores, abs=1e-5)
        if length == 0:
            assert strings([found[row]]) == strings([free[row]])


def test_prefix_with_eos_is_the_only_hypothesis(model, rows):
    found = run(model, rows[:2], prefix=torch.tensor([[4, 5, EOS], [4, PAD, PAD]]), beam=3, nbest=3)
    assert strings(found)[0] == [(4, 5, EOS)]
    assert len(found[1]) == 3


def test_constraints_do_not_apply_to_the_prefix(model, rows):
    (hypothesis,) = run(model, rows[:1], prefix=torch.tensor([[4, 4, UNK, 4, 4]]), no_repeat_ngram=2)[0]
    assert hypothesis.tokens[:5] == (4, 4, UNK, 4, 4)
    assert np.isfinite(hypothesis.score)


def test_ensemble_of_equal_models_equals_one_model(model, rows):
    once, twice = run(model, rows, nbest=3), run([model, model], rows, nbest=3)
    assert strings(once) == strings(twice)
    assert scores(once) == pytest.approx(scores(twice), abs=1e-5)


def test_ensemble_averages_probabilities(rows):
    members = [transformer(WORDS, seed=seed) for seed in (6, 7)]
    (hypothesis,) = run(members, rows[:1], beam=1)[0]
    batch = collate_pairs([(0, rows[0], np.array(hypothesis.tokens))])
    each = [score([member], batch)[0].token_scores for member in members]
    expected = np.log(np.mean(np.exp(each), axis=0))
    assert hypothesis.token_scores == pytest.approx(expected, abs=1e-5)
    assert score(members, batch)[0].token_scores == pytest.approx(expected, abs=1e-5)


def test_temperature_divides_the_logits(rows):
    model = transformer(WORDS, seed=8, sharpness=4.0)
    cooled = transformer(WORDS, seed=8, sharpness=8.0)
    warm, sharp = run(model, rows, temperature=0.5), run(cooled, rows)
    assert strings(warm) == strings(sharp)
    assert scores(warm) == pytest.approx(scores(sharp), abs=1e-5)


def test_equal_scores_are_ordered_by_beam_and_token_id():
    flat = Table(flat_table(WORDS, length=1))
    for count in (1, 3):
        found = run(flat, [np.array([EOS])] * count, beam=3, nbest=3, max_length_b=2)
        assert strings(found) == [[(3, EOS), (3, 3, EOS), (3, 4, EOS)]] * count


def test_best_orders_equal_values_by_index():
    generator = torch.Generator().manual_seed(0)
    scores_BN = torch.randint(0, 4, (40, 300), generator=generator).float()
    scores_BN[5, :] = -torch.inf
    scores_BN[6, 10:] = -torch.inf
    values, indices = best(scores_BN, count=7)
    expected = scores_BN.sort(dim=1, descending=True, stable=True)
    assert values.equal(expected.values[:, :7])
    finite = values.isfinite()
    assert indices[finite].equal(expected.indices[:, :7][finite])
    values, indices = best(torch.tensor([[1.0, 3.0, 3.0]]), count=5)
    assert values.tolist() == [[3.0, 3.0, 1.0, -torch.inf, -torch.inf]]
    assert indices[:, :3].tolist() == [[1, 2, 0]]


def test_search_without_allowed_tokens_returns_only_eos():
    table = flat_table(1, length=1)  # one word, which must not repeat
    found = run(Table(table), [np.array([EOS])], words=1, no_repeat_ngram=1, min_length=5, unk_penalty=torch.inf)
    assert found == [[Hypothesis(tokens=(EOS,), score=-torch.inf, token_scores=(-torch.inf,))]]


def test_nan_scores_are_refused():
    table = flat_table(WORDS, length=1)
    table[0, 5] = torch.nan
    table[0, EOS, 5] = 9.0
    with pytest.raises(UserError, match="NaN"):
        run(Table(table), [np.array([EOS])])


def test_nan_scores_of_given_targets_are_refused():
    diverged = sharpen(transformer(WORDS, seed=1), torch.nan)
    with pytest.raises(UserError, match="NaN"):
        score([diverged], collate_pairs([(0, np.array([EOS]), np.array([5, EOS]))]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nbest": 3, "beam": 2}, "nbest=3"),
        ({"temperature": 0.0}, "temperature"),
        ({"max_length_b": -1}, "max_length_b"),
    ],
)
def test_error_names_the_invalid_setting(model, rows, options, words):
    with pytest.raises(UserError, match=words):
        run(model, rows, **options)


def test_model_in_training_mode_is_refused(rows):
    with pytest.raises(ValueError, match="eval"):
        run(transformer(WORDS, seed=1).train(), rows)


def test_target_padding_is_not_scored(model, rows):
    generator = np.random.default_rng(9)
    targets = [np.append(generator.integers(4, 4 + WORDS, size=size), EOS) for size in (0, 3, 8)]
    pairs = [(index, row, target) for index, (row, target) in enumerate(zip(rows, targets, strict=False))]
    together = score([model], collate_pairs(pairs))
    for pair, hypothesis in zip(pairs, together, strict=True):
        assert hypothesis.tokens == tuple(pair[2].tolist())
        (alone,) = score([model], collate_pairs([pair]))
        assert alone.token_scores == pytest.approx(hypothesis.token_scores, abs=1e-5)
        assert hypothesis.score == pytest.approx(np.mean(hypothesis.token_scores), abs=1e-6)


def test_impossible_min_length_is_refused():
    with pytest.raises(UserError, match="min_length=300 is more than the maximum, max_length_b=200"):
        SearchConfig(min_length=300).check()
    SearchConfig(min_length=300, max_length_a=2.0).check()  # possible for long sentences
