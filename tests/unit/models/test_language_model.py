"""Language models: decoding steps equal `forward`, features do not depend on later tokens, and settings take effect."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.synthesizer import SynthesizerDenseConfig
from seqtk.attention.transformer_xl import TransformerXLConfig
from seqtk.checkpoint.model_file import load_tensors, save_tensors, set_tensors, tensors_of
from seqtk.config import schema
from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.encoder_batches import ClassBatch
from seqtk.data.vocabulary import EOS, PAD
from seqtk.models import build_model, models
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.models.transformer import TransformerConfig
from seqtk.modules.adaptive import AdaptiveConfig
from seqtk.modules.head import LinearHead
from seqtk.utils.errors import UserError

VOCABULARY = 20
TINY = TransformerLMConfig(dim=16, ffn_dim=24, heads=2, layers=2, max_length=12)
BANDS = AdaptiveConfig(cutoffs=(7, 13), input_factor=2.0, softmax_factor=2.0)
VARIANTS = {
    "post-norm": TINY,
    "pre-norm": replace(TINY, pre_norm=True, activation="gelu"),
    "without a final norm": replace(TINY, pre_norm=True, final_norm=False),
    "learned positions": replace(TINY, positions="learned", scale_embedding=False),
    "no positions, a norm, untied embeddings": replace(
        TINY, positions="none", norm_embedding=True, tie_embeddings=False
    ),
    "adaptive, tied": replace(TINY, adaptive=BANDS),
    "adaptive, untied": replace(TINY, adaptive=replace(BANDS, softmax_factor=4.0), tie_embeddings=False),
    "adaptive input only": replace(TINY, adaptive=replace(BANDS, softmax_factor=None), tie_embeddings=False),
    "adaptive softmax only": replace(TINY, adaptive=replace(BANDS, input_factor=None), tie_embeddings=False),
    "a pattern of layers": replace(TINY, attention=(SoftmaxConfig(), SynthesizerDenseConfig(max_length=12))),
}


def tiny(config: TransformerLMConfig = TINY) -> TransformerLM:
    torch.manual_seed(3)
    return TransformerLM(config, vocabulary=VOCABULARY).eval()


def batch_of(previous_BT: torch.Tensor) -> LanguageBatch:
    targets_BT = previous_BT.roll(-1, dims=1)
    return LanguageBatch(torch.arange(len(previous_BT)), targets_BT.numel(), previous_BT, targets_BT)


def rows(count: int = 3, length: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    drawn_BT = torch.randint(4, VOCABULARY, (count, length), generator=generator)
    drawn_BT[:, 0] = EOS
    return drawn_BT


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_decoding_steps_equal_forward(variant: str) -> None:
    model = tiny(VARIANTS[variant])
    previous_BT = rows()
    wanted_BTD = model(batch_of(previous_BT))[0]
    state = model.start(batch_of(previous_BT[:, :0]))
    for at, token_B in enumerate(previous_BT.unbind(1)):
        features_B1D, state = model.step(token_B, state)
        torch.testing.assert_close(features_B1D[:, 0], wanted_BTD[:, at], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_decoding_continues_a_prompt() -> None:
    model = tiny()
    previous_BT = rows()
    state = model.start(batch_of(previous_BT[:, :4]))
    features_B1D, _ = model.step(previous_BT[:, 4], state)
    torch.testing.assert_close(features_B1D[:, 0], model(batch_of(previous_BT))[0][:, 4], rtol=1e-5, atol=1e-5)
    previous_BT[0, 2:] = PAD
    with pytest.raises(ValueError, match="same length"):
        model.start(batch_of(previous_BT))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_features_do_not_depend_on_later_tokens_or_padding(variant: str) -> None:
    model = tiny(VARIANTS[variant])
    previous_BT = rows()
    wanted_BTD = model(batch_of(previous_BT))[0][:, :4]
    changed_BT = previous_BT.clone()
    changed_BT[:, 4:] = PAD
    torch.testing.assert_close(model(batch_of(changed_BT))[0][:, :4], wanted_BTD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(batch_of(previous_BT[:1, :4]))[0], wanted_BTD[:1], rtol=1e-5, atol=1e-6)


def test_bias_false_removes_every_bias() -> None:
    config = replace(TINY, bias=False, pre_norm=True, attention=(SoftmaxConfig(bias=False),))
    assert not [name for name, _ in tiny(config).named_parameters() if "bias" in name]
    assert [name for name, _ in tiny().named_parameters() if "bias" in name]


def test_layer_drop_skips_blocks_only_in_training() -> None:
    model = tiny(replace(TINY, layers=6, layer_drop=0.5, dropout=0.0))
    batch = batch_of(rows())
    assert torch.equal(model(batch)[0], model(batch)[0])
    model.train()
    torch.manual_seed(1)
    model(batch)[0].sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert None not in gradients.values()
    silent = [all(not p.grad.any() for p in block.parameters()) for block in model.decoder.blocks]  # type: ignore[union-attr]
    assert True in silent
    assert False in silent
    with pytest.raises(UserError, match="layer_drop=1"):
        models.build(replace(TINY, layer_drop=1.0), vocabulary=VOCABULARY)


def test_tied_adaptive_weights_are_saved_once(tmp_path: Path) -> None:
    model = tiny(VARIANTS["adaptive, tied"])
    save_tensors(tmp_path / "a.safetensors", tensors_of(model))
    tensors, _ = load_tensors(tmp_path / "a.safetensors")
    assert [name for name in tensors if name.startswith("head.")] == ["head.classes"]
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(p.numel() for p in model.parameters())
    torch.manual_seed(9)
    other = TransformerLM(model.config, vocabulary=VOCABULARY).eval()
    set_tensors(other, tensors, source="a.safetensors")
    features_BTD = model(batch_of(rows()))[0]
    assert torch.equal(other(batch_of(rows()))[0], features_BTD)
    assert torch.equal(other.head.log_probs(features_BTD), model.head.log_probs(features_BTD))


def test_adaptive_config_is_read_from_a_dict() -> None:
    config = schema.from_dict(TransformerLMConfig, {"adaptive": {"cutoffs": [5, 9], "dropout": 0.2}})
    assert config.adaptive == AdaptiveConfig(cutoffs=(5, 9), dropout=0.2)
    assert schema.from_dict(TransformerLMConfig, {"adaptive": schema.to_dict(config)["adaptive"]}) == config
    with pytest.raises(UserError, match=r"no key 'adaptive\.cutofs'") as caught:
        schema.from_dict(TransformerLMConfig, {"adaptive": {"cutofs": [5, 9]}})
    assert "cutoffs" in str(caught.value).splitlines()[1]
    assert schema.update(TransformerLMConfig(), "adaptive.dropout", 0.2).adaptive == AdaptiveConfig(dropout=0.2)
    named = schema.update(models.config_type("transformer_lm_wiki103")(), "adaptive.cutoffs", [5, 9])
    assert named.adaptive == AdaptiveConfig(cutoffs=(5, 9), dropout=0.2)


def test_model_of_a_different_task_is_refused() -> None:
    with pytest.raises(UserError, match=r"model=transformer (.|\n)*transformer_lm"):
        build_model(TransformerConfig(), LanguageBatch, vocabulary=VOCABULARY)
    sizes = {"source_vocabulary": VOCABULARY, "target_vocabulary": VOCABULARY}
    with pytest.raises(UserError, match="model=transformer_lm "):
        build_model(TINY, TranslationBatch, **sizes)
    with pytest.raises(UserError, match=r"(.|\n)*: transformer_classifier"):
        build_model(TINY, ClassBatch, vocabulary=VOCABULARY, head=lambda dim: LinearHead(dim, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 0}, r"model\.dim=0"),
        ({"heads": 3}, "3 heads"),
        ({"layers": -1}, r"model\.layers=-1"),
        ({"adaptive": replace(BANDS, softmax_factor=4.0)}, "input and output cannot share their embeddings"),
        ({"adaptive": replace(BANDS, input_factor=None)}, "input_factor=null and softmax_factor=2.0"),
        ({"adaptive": AdaptiveConfig()}, "must be below the vocabulary size, 20"),
        ({"adaptive": replace(BANDS, dropout=1.0)}, "dropout=1"),
        ({"attention": (SoftmaxConfig(),) * 3}, "'model.attention' has 3 attention layers for 2 blocks"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        models.build(replace(TINY, **changes), vocabulary=VOCABULARY)  # type: ignore[arg-type]


@torch.no_grad()
def test_segments_with_recurrent_state_equal_whole_text() -> None:
    memory = TransformerXLConfig(memory_length=3)
    model = tiny(replace(TINY, positions="none", attention=(memory,))).double()
    previous_BT = rows(length=30)
    wanted_BTD = model(batch_of(previous_BT))[0]
    memory_state, parts, state = None, [], model.empty_state(3, previous_BT.device)
    for segment_BT in torch.split(previous_BT, (7, 1, 12, 10), dim=1):
        features_BTD, memory_state = model(batch_of(segment_BT), memory_state)
        parts.append(features_BTD)
        for token_B in segment_BT.unbind(1):
            stepped_B1D, state = model.step(token_B, state)
        torch.testing.assert_close(stepped_B1D[:, 0], features_BTD[:, -1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.cat(parts, 1), wanted_BTD, rtol=1e-10, atol=1e-10)
    assert model.length_limit("target") is None
    mixed = tiny(replace(TINY, positions="none", attention=(memory, SoftmaxConfig())))
    assert mixed.length_limit("target") == TINY.max_length
    assert [leaf is None for leaf in mixed(batch_of(rows()))[1]] == [False, True]


def test_absolute_positions_with_state_are_refused() -> None:
    model = tiny(replace(TINY, attention=(TransformerXLConfig(memory_length=3),)))
    _, memory_state = model(batch_of(rows()))
    with pytest.raises(UserError, match=r"model\.positions=sinusoidal"):
        model(batch_of(rows()), memory_state)
