import multiprocessing
import os
import time

import numpy as np
import pytest

from seqtk.data.plan import BatchingConfig
from seqtk.data.vocabulary import EOS
from seqtk.generation.config import SearchConfig
from seqtk.generation.decode import BatchTranslator, Sentence, decode_in_order, decoding_map
from seqtk.generation.search import Hypothesis, search
from seqtk.utils.errors import UserError
from tests.unit.generation.tiny import batch_of, sources, transformer, vocabulary

WORDS = 12
SEARCH = SearchConfig(beam=2, max_length_b=3)


@pytest.fixture(scope="module")
def model():
    return transformer(WORDS, seed=1, max_source_length=32)


@pytest.fixture(scope="module")
def decoder(model):
    return BatchTranslator(models=(model,), vocabulary=vocabulary(WORDS), search=SEARCH)


def test_results_are_in_input_order(model, decoder):
    rows = sources(20, words=WORDS, seed=3)
    alone = [search([model], batch_of([row]), SEARCH, vocabulary=vocabulary(WORDS))[0] for row in rows]
    assert len({hypotheses[0].tokens for hypotheses in alone}) > 7
    for count in range(21):
        batching = BatchingConfig(max_tokens=40 if count % 2 else None, max_sentences=3 if count % 3 else 64)
        window = (3, 7, 100)[count % 3]
        found = list(decode_in_order(map(Sentence, rows[:count]), decoder, batching=batching, window=window))
        assert [translation.sentence.index for translation in found] == list(range(count))
        assert [translation.sentence.source.tolist() for translation in found] == [row.tolist() for row in rows[:count]]
        assert [t.hypotheses[0].tokens for t in found] == [hypotheses[0].tokens for hypotheses in alone[:count]]


def test_window_limits_the_number_of_sentences_read(decoder):
    read = []

    def reading():
        for row in sources(9, words=WORDS, seed=4):
            read.append(row)
            yield Sentence(row)

    for translation in decode_in_order(reading(), decoder, batching=BatchingConfig(), window=3):
        assert len(read) == 3 * (translation.sentence.index // 3 + 1)


class Dying(BatchTranslator):
    def __call__(self, sentences):
        os._exit(9)


@pytest.mark.slow
def test_death_of_a_worker_process_is_an_error(model):
    dying = Dying(models=(model,), vocabulary=vocabulary(WORDS), search=SEARCH)
    with pytest.raises(UserError, match="worker process"), decoding_map(dying, workers=1) as map_batches:
        list(map_batches(dying, [[Sentence(np.array([EOS]))]]))


class Slow(BatchTranslator):
    def __call__(self, sentences):
        time.sleep(3)
        return super().__call__(sentences)


@pytest.mark.slow
def test_death_of_an_idle_worker_process_is_an_error(model):
    slow = Slow(models=(model,), vocabulary=vocabulary(WORDS), search=SEARCH)
    before = set(multiprocessing.active_children())

    def kill_one():
        with decoding_map(slow, workers=2) as map_batches:
            list(map_batches(slow, [[Sentence(np.array([EOS]))]] * 2))  # both workers have started
            next(iter(set(multiprocessing.active_children()) - before)).kill()
            list(map_batches(slow, [[Sentence(np.array([EOS]))]]))

    with pytest.raises(UserError, match="worker process"):
        kill_one()


def test_long_source_is_truncated_and_flagged(model, decoder):
    long = np.append(np.full(60, 5), EOS)
    short = np.array([4, 5, EOS])
    cut, whole = decode_in_order([Sentence(long), Sentence(short)], decoder, batching=BatchingConfig())
    assert (cut.truncated, whole.truncated) == (True, False)
    assert cut.sentence.source is long
    expected = search([model], batch_of([np.append(long[:31], EOS)]), SEARCH, vocabulary=vocabulary(WORDS))
    assert cut.hypotheses[0].tokens == expected[0][0].tokens


def test_long_target_to_score_is_truncated_and_flagged(model):
    decoder = BatchTranslator(models=(model,), vocabulary=vocabulary(WORDS), score_targets=True)
    sentence = Sentence(np.array([4, EOS]), target=np.append(np.full(100, 6), EOS))
    (scored,) = decode_in_order([sentence], decoder, batching=BatchingConfig())
    assert scored.truncated
    assert scored.hypotheses[0].tokens == (*[6] * 63, EOS)


def test_blank_line_gives_an_empty_translation(decoder):
    empty = np.array([EOS])
    blank, row = decode_in_order(
        [Sentence(empty, source_text="  "), Sentence(np.array([4, EOS]), source_text="w0")],
        decoder,
        batching=BatchingConfig(),
    )
    assert blank.hypotheses == [Hypothesis(tokens=(EOS,), score=0.0, token_scores=(0.0,))]
    assert len(row.hypotheses[0].tokens) > 1
    (only_blank,) = decode_in_order([Sentence(empty, source_text="")], decoder, batching=BatchingConfig())
    assert only_blank.hypotheses[0].tokens == (EOS,)


def test_batch_may_mix_sentences_with_and_without_prefix(decoder):
    row = np.array([4, 5, EOS])
    forced, free = decode_in_order(
        [Sentence(row, prefix=np.array([9, 9])), Sentence(row)], decoder, batching=BatchingConfig()
    )
    (alone,) = decode_in_order([Sentence(row)], decoder, batching=BatchingConfig())
    assert not forced.prefix_truncated
    assert forced.hypotheses[0].tokens[:2] == (9, 9)
    assert free.hypotheses[0].tokens == alone.hypotheses[0].tokens


def test_bfloat16_scores_are_close_to_float32(model, decoder):
    rows = [Sentence(row) for row in sources(6, words=WORDS, seed=7)]
    coarse = BatchTranslator(models=(model,), vocabulary=vocabulary(WORDS), search=SEARCH, bf16=True)
    exact, rough = (list(decode_in_order(rows, each, batching=BatchingConfig())) for each in (decoder, coarse))
    for one, other in zip(exact, rough, strict=True):
        assert other.hypotheses[0].score == pytest.approx(one.hypotheses[0].score, abs=0.3)


def test_long_prefix_is_truncated_and_flagged(decoder):
    row, prefix = np.array([4, 5, EOS]), np.array([9, 8, 7, 6, 5])
    (cut,) = decode_in_order([Sentence(row, prefix=prefix)], decoder, batching=BatchingConfig())
    assert cut.prefix_truncated
    assert cut.hypotheses[0].tokens == (9, 8, 7, EOS)
