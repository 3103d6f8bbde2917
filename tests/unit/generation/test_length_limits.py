import dataclasses

import pytest
import torch

from seqtk.attention import Role, attentions
from seqtk.data.batch import TranslationBatch
from seqtk.data.plan import BatchingConfig
from seqtk.data.vocabulary import EOS, PAD
from seqtk.generation.config import SearchConfig
from seqtk.generation.decode import BatchTranslator, Sentence, decode_in_order
from seqtk.generation.length_limits import length_limit, target_length_bounds
from tests.unit.generation.tiny import Table, sources, transformer, vocabulary

WORDS = 12
SELF_ATTENTIONS = [
    name for name in attentions if Role.ENCODER | Role.CAUSAL in attentions.class_of(attentions.config_type(name)).roles
]


def config_of(name, **options):
    config = attentions.config_type(name)()
    known = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{key: value for key, value in options.items() if key in known})


@pytest.mark.parametrize("name", SELF_ATTENTIONS)
def test_decoding_at_the_length_limit_is_batch_invariant(name):
    model = transformer(WORDS, seed=1, attention=config_of(name, heads=2, max_length=9, rank=2))
    rows = sources(12, words=WORDS, seed=1, longest=12)
    decoder = BatchTranslator(
        models=(model,), vocabulary=vocabulary(WORDS), search=SearchConfig(beam=3, max_length_b=11, min_length=6)
    )
    alone, together = (
        list(decode_in_order(map(Sentence, rows), decoder, batching=BatchingConfig(max_sentences=size)))
        for size in (1, 16)
    )
    for one, other in zip(alone, together, strict=True):
        assert one.hypotheses[0].tokens == other.hypotheses[0].tokens
        assert one.hypotheses[0].score == pytest.approx(other.hypotheses[0].score, abs=1e-5)
    reach = length_limit([model], "target")
    assert reach is not None
    assert max(len(one.hypotheses[0].tokens) for one in alone) <= reach
    assert [one.truncated for one in alone] == [len(row) > (length_limit([model], "source") or 99) for row in rows]


def test_length_limit_is_the_smallest_of_all_layers():
    far = transformer(WORDS, seed=1, max_source_length=40, max_target_length=50)
    near = transformer(WORDS, seed=1, attention=config_of("synthesizer_random", heads=2, max_length=9))
    assert (length_limit([far], "source"), length_limit([far], "target")) == (40, 50)
    assert (length_limit([near], "source"), length_limit([near], "target")) == (9, 9)
    assert (length_limit([far, near], "source"), length_limit([near, far], "target")) == (9, 9)
    table = Table(torch.zeros(1, 6, 6))
    assert (length_limit([table], "source"), length_limit([table], "target")) == (None, None)


def test_target_limit_depends_on_source_length_only():
    source_BS = torch.tensor([[4, 5, 6, EOS], [4, EOS, PAD, PAD], [EOS, PAD, PAD, PAD]])
    config = SearchConfig(max_length_a=0.5, max_length_b=3, min_length=2)

    def bounds(source_BS, model):
        none_B0 = torch.empty(3, 0, dtype=torch.long)
        batch = TranslationBatch(torch.arange(3), 0, source_BS=source_BS, previous_BT=none_B0, target_BT=none_B0)
        return [bound_B.tolist() for bound_B in target_length_bounds([model], batch, config, prefix_BP=None)]

    table = Table(torch.zeros(1, 6, 6))
    assert bounds(source_BS, table) == [[2, 2, 2], [5, 4, 3]]
    assert bounds(source_BS, transformer(WORDS, seed=1, max_target_length=5)) == [[2, 2, 2], [4, 4, 3]]
    assert bounds(source_BS.flip(1), table) == [[2, 2, 2], [5, 4, 3]]
