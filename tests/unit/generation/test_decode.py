import numpy as np
import pytest

from seqtk.data.plan import BatchingConfig
from seqtk.data.vocabulary import EOS
from seqtk.generation.config import SearchConfig
from seqtk.generation.decode import Decoder, Sentence, in_order
from seqtk.generation.search import Hypothesis, search
from tests.unit.generation.tiny import batch_of, sources, transformer, vocabulary

WORDS = 12
SEARCH = SearchConfig(beam=2, max_length_b=3)


@pytest.fixture(scope="module")
def model():
    return transformer(WORDS, seed=1, max_source_length=32)


@pytest.fixture(scope="module")
def decoder(model):
    return Decoder(models=(model,), vocabulary=vocabulary(WORDS), search=SEARCH)


def test_n_sentences_give_n_translations_in_their_order(model, decoder):
    rows = sources(20, words=WORDS, seed=3)
    alone = [search([model], batch_of([row]), SEARCH, vocabulary=vocabulary(WORDS))[0] for row in rows]
    assert len({hypotheses[0].tokens for hypotheses in alone}) > 7
    for count in range(21):
        batching = BatchingConfig(max_tokens=40 if count % 2 else None, max_sentences=3 if count % 3 else 64)
        window = (3, 7, 100)[count % 3]
        found = list(in_order(map(Sentence, rows[:count]), decoder, batching=batching, window=window))
        assert [translation.index for translation in found] == list(range(count))
        assert [translation.sentence.source.tolist() for translation in found] == [row.tolist() for row in rows[:count]]
        assert [t.hypotheses[0].tokens for t in found] == [hypotheses[0].tokens for hypotheses in alone[:count]]


def test_no_more_sentences_are_read_than_the_window_holds(decoder):
    read = []

    def reading():
        for row in sources(9, words=WORDS, seed=4):
            read.append(row)
            yield Sentence(row)

    for translation in in_order(reading(), decoder, batching=BatchingConfig(), window=3):
        assert len(read) == 3 * (translation.index // 3 + 1)


def test_a_sentence_too_long_for_the_model_loses_its_end_and_says_so(model, decoder):
    long = np.append(np.full(60, 5), EOS)
    short = np.array([4, 5, EOS])
    cut, whole = in_order([Sentence(long), Sentence(short)], decoder, batching=BatchingConfig())
    assert (cut.shortened, whole.shortened) == (True, False)
    assert cut.sentence.source is long
    expected = search([model], batch_of([np.append(long[:31], EOS)]), SEARCH, vocabulary=vocabulary(WORDS))
    assert cut.hypotheses[0].tokens == expected[0][0].tokens


def test_a_target_too_long_to_be_scored_loses_its_end(model):
    decoder = Decoder(models=(model,), vocabulary=vocabulary(WORDS), score_targets=True)
    sentence = Sentence(np.array([4, EOS]), target=np.append(np.full(100, 6), EOS))
    (scored,) = in_order([sentence], decoder, batching=BatchingConfig())
    assert scored.shortened
    assert scored.hypotheses[0].tokens == (*[6] * 63, EOS)


def test_a_blank_line_is_translated_by_a_blank_line(decoder):
    empty = np.array([EOS])
    blank, row = in_order(
        [Sentence(empty, source_text="  "), Sentence(np.array([4, EOS]), source_text="w0")],
        decoder,
        batching=BatchingConfig(),
    )
    assert blank.hypotheses == [Hypothesis(tokens=(EOS,), score=0.0, token_scores=(0.0,))]
    assert len(row.hypotheses[0].tokens) > 1
    (only_blank,) = in_order([Sentence(empty, source_text="")], decoder, batching=BatchingConfig())
    assert only_blank.hypotheses[0].tokens == (EOS,)


def test_sentences_with_and_without_a_prefix_share_a_batch(decoder):
    row = np.array([4, 5, EOS])
    forced, free = in_order([Sentence(row, prefix=np.array([9, 9])), Sentence(row)], decoder, batching=BatchingConfig())
    (alone,) = in_order([Sentence(row)], decoder, batching=BatchingConfig())
    assert forced.hypotheses[0].tokens[:2] == (9, 9)
    assert free.hypotheses[0].tokens == alone.hypotheses[0].tokens


def test_bfloat16_gives_float32_scores_near_those_of_float32(model, decoder):
    rows = [Sentence(row) for row in sources(6, words=WORDS, seed=7)]
    coarse = Decoder(models=(model,), vocabulary=vocabulary(WORDS), search=SEARCH, bf16=True)
    exact, rough = (list(in_order(rows, each, batching=BatchingConfig())) for each in (decoder, coarse))
    for one, other in zip(exact, rough, strict=True):
        assert other.hypotheses[0].score == pytest.approx(one.hypotheses[0].score, abs=0.3)
