import numpy as np
import torch

from seqtk.data.vocabulary import EOS
from seqtk.generation.decoder_state import ModelState
from seqtk.generation.search import SearchConfig, search
from tests.unit.generation.tiny import Diary, batch_of, sources, transformer, vocabulary

WORDS = 8


def test_search_supports_models_that_change_state_in_place():
    torch.manual_seed(0)
    table = torch.randn(1, WORDS + 4, WORDS + 4)
    table[0, 0] = 0.0  # token 0 fills the unused places of the history
    model = Diary(table)
    rows = [np.array([EOS])] * 2
    config = SearchConfig(beam=5, nbest=5, max_length_b=8, min_length=4)
    for hypotheses in search([model], batch_of(rows), config, vocabulary=vocabulary(WORDS)):
        for hypothesis in hypotheses:
            state = model.start(batch_of(rows[:1]))
            for previous, token, found in zip(
                (EOS, *hypothesis.tokens), hypothesis.tokens, hypothesis.token_scores, strict=False
            ):
                features, state = model.step(torch.tensor([previous]), state)
                assert abs(float(model.head.log_probs(features)[0, 0, token]) - found) < 1e-4


def test_static_state_is_reordered_only_across_sentences():
    model = transformer(WORDS, seed=0)
    with torch.no_grad():
        states = ModelState(model, batch_of(sources(2, words=WORDS, seed=0)))
        states.step(torch.tensor([EOS, EOS]), temperature=1.0)
        states.reorder(torch.tensor([0, 0, 1, 1]), across_sentences=True)
        states.step(torch.tensor([4, 5, 6, 7]), temperature=1.0)
        before = states.state["blocks"][0]
        states.reorder(torch.tensor([1, 1, 3, 2]), across_sentences=False)
    after = states.state["blocks"][0]
    assert after["cross"].static["key"] is before["cross"].static["key"]
    assert after["self"].dynamic["key"].equal(before["self"].dynamic["key"][[1, 1, 3, 2]])


def test_identity_reordering_copies_no_tensor():
    model = transformer(WORDS, seed=0)
    with torch.no_grad():
        states = ModelState(model, batch_of(sources(2, words=WORDS, seed=0)))
        states.step(torch.tensor([EOS, EOS]), temperature=1.0)
        before = states.state
        states.reorder(torch.tensor([0, 1]), across_sentences=False)
    assert states.state is before


def test_reorder_works_in_inference_mode():
    model = transformer(WORDS, seed=0)
    with torch.inference_mode():
        states = ModelState(model, batch_of(sources(2, words=WORDS, seed=0)))
        states.step(torch.tensor([EOS, EOS]), temperature=1.0)
        states.reorder(torch.tensor([1, 0]), across_sentences=False)
        assert states.step(torch.tensor([4, 5]), temperature=1.0).isfinite().all()
