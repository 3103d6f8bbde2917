"""Recurrent memory language models: `forward` and decoding steps equal the equations, for segments of any length."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from seqtk.attention.linear import LinearConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.synthesizer import SynthesizerDenseConfig
from seqtk.data.batch import LanguageBatch
from seqtk.models import models
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.models.recurrent_memory import RecurrentMemoryLM, RecurrentMemoryLMConfig
from seqtk.utils.errors import UserError
from tests.unit.models.test_language_model import VOCABULARY, batch_of, rows

TINY = RecurrentMemoryLMConfig(
    dim=16, ffn_dim=24, heads=2, layers=2, max_length=12, segment_length=4, memory_tokens=3, dropout=0.0
)
VARIANTS = {
    "post-norm": TINY,
    "pre-norm, learned positions": replace(TINY, pre_norm=True, positions="learned", norm_embedding=True),
    "other layers": replace(TINY, attention=(LinearConfig(), SynthesizerDenseConfig(max_length=10))),
    "no memory": replace(TINY, memory_tokens=0),
}


def tiny(config: RecurrentMemoryLMConfig = TINY) -> RecurrentMemoryLM:
    torch.manual_seed(3)
    return RecurrentMemoryLM(config, vocabulary=VOCABULARY).double().eval()


def naive(model: RecurrentMemoryLM, previous_BT: torch.Tensor) -> torch.Tensor:
    """Returns features, computed with a loop over rows and segments. The decoder reads [memory; segment; memory]."""
    config, found = model.config, []
    for tokens_T in previous_BT:
        memory, parts = model.memory_MD, []
        for start in range(0, len(tokens_T), config.segment_length):
            segment = tokens_T[start : start + config.segment_length]
            vectors = model.embedding.scale * model.embedding.tokens(segment)
            x_ND = torch.cat([memory, vectors, memory])
            if model.embedding.positions is not None:
                x_ND = x_ND + model.embedding.positions(torch.arange(len(x_ND))[None])[0]
            if model.embedding.norm is not None:
                x_ND = model.embedding.norm(x_ND)
            y_ND = model.decoder(x_ND[None])[0][0]
            parts.append(y_ND[config.memory_tokens : config.memory_tokens + len(segment)])
            memory = y_ND[config.memory_tokens + len(segment) :]
        found.append(torch.cat(parts))
    return torch.stack(found)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_forward_and_decoding_steps_equal_the_formula(variant: str) -> None:
    model, previous_BT = tiny(VARIANTS[variant]), rows(length=11)
    features_BTD = model(batch_of(previous_BT))[0]
    torch.testing.assert_close(features_BTD, naive(model, previous_BT), rtol=1e-10, atol=1e-10)
    state = model.start(batch_of(previous_BT[:, :0]))
    for at, token_B in enumerate(previous_BT.unbind(1)):
        features_B1D, state = model.step(token_B, state)
        torch.testing.assert_close(features_B1D[:, 0], features_BTD[:, at], rtol=1e-10, atol=1e-10)
    behind_B1D, _ = model.step(previous_BT[:, 6], model.start(batch_of(previous_BT[:, :6])))
    torch.testing.assert_close(behind_B1D[:, 0], features_BTD[:, 6], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", [(8, 4), (4, 4, 4)])
@torch.no_grad()
def test_short_samples_with_memory_equal_a_long_sample(lengths: tuple[int, ...]) -> None:
    model, previous_BT = tiny(), rows(length=12)
    memory_state, parts = None, []
    for part_BT in torch.split(previous_BT, lengths, dim=1):
        features_BTD, memory_state = model(batch_of(part_BT), memory_state)
        parts.append(features_BTD)
    torch.testing.assert_close(torch.cat(parts, 1), model(batch_of(previous_BT))[0])
    alone = model(batch_of(previous_BT[:, lengths[0] :]))[0]
    assert not torch.allclose(alone[:, 0], torch.cat(parts, 1)[:, lengths[0]])


@torch.no_grad()
def test_one_segment_without_memory_equals_transformer_lm() -> None:
    model = tiny(replace(TINY, memory_tokens=0, segment_length=12))
    fields = {name: getattr(TINY, name) for name in ("dim", "ffn_dim", "heads", "layers", "max_length", "dropout")}
    plain = TransformerLM(TransformerLMConfig(**fields), vocabulary=VOCABULARY).double().eval()
    weights = model.state_dict()
    assert weights.pop("memory_MD").numel() == 0
    plain.load_state_dict(weights)
    batch = batch_of(rows(length=12))
    torch.testing.assert_close(model(batch)[0], plain(batch)[0])


def test_gradients_flow_back_to_earlier_segments() -> None:
    model = tiny()
    batch = batch_of(rows(length=12))
    features_BTD, memory_state = model(batch)
    features_BTD[:, 9].square().sum().backward(retain_graph=True)
    assert model.memory_MD.grad is not None
    assert model.memory_MD.grad.any()
    model.zero_grad()
    model(batch, memory_state.detach())[0].square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not model.memory_MD.grad.any()


@torch.no_grad()
def test_features_do_not_depend_on_later_tokens() -> None:
    model, previous_BT = tiny(), rows(length=11)
    changed_BT = previous_BT.clone()
    changed_BT[:, 6:] = 5
    batches: list[LanguageBatch] = [batch_of(previous_BT), batch_of(changed_BT)]
    one, other = (model(batch)[0][:, :6] for batch in batches)
    torch.testing.assert_close(one, other)


def test_too_long_segments_are_refused() -> None:
    assert tiny(VARIANTS["other layers"]).length_limit("target") is None
    model = TransformerLM(TransformerLMConfig(dim=16, heads=2), vocabulary=VOCABULARY)
    assert model.length_limit("target") == 1024
    short: dict[str, Any] = {"attention": (SoftmaxConfig(), SynthesizerDenseConfig(max_length=9))}
    with pytest.raises(UserError, match=r"attention\.max_length=9"):
        tiny(replace(TINY, **short))
    with pytest.raises(UserError, match=r"model\.max_length=12"):
        tiny(replace(TINY, segment_length=7))
    with pytest.raises(UserError, match=r"model\.segment_length=0"):
        models.build(replace(TINY, segment_length=0), vocabulary=VOCABULARY)
    with pytest.raises(UserError, match=r"model\.memory_tokens=-1"):
        models.build(replace(TINY, memory_tokens=-1), vocabulary=VOCABULARY)
