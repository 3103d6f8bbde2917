"""Importing fairseq models with adaptive input and softmax: all layouts, and errors about unsupported options."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.interop.fairseq import import_fairseq
from seqtk.interop.fairseq_keys import fairseq_name
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.modules.adaptive import AdaptiveConfig
from seqtk.utils.errors import UserError

V = 20
TIED = TransformerLMConfig(
    dim=8,
    ffn_dim=12,
    heads=2,
    layers=1,
    max_length=9,
    adaptive=AdaptiveConfig(cutoffs=(6, 13), input_factor=2.0, softmax_factor=2.0),
)
OPTIONS = {
    "arch": "transformer_lm",
    "task": "language_modeling",
    "tokens_per_sample": 9,
    "decoder_layers": 1,
    "decoder_embed_dim": 8,
    "decoder_ffn_embed_dim": 12,
    "decoder_attention_heads": 2,
    "adaptive_input": True,
    "adaptive_input_cutoff": "6,13",
    "adaptive_input_factor": 2,
    "adaptive_softmax_cutoff": "6,13",
    "adaptive_softmax_factor": 2.0,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}


def config_of(*, tie: bool = True, **changes: Any) -> TransformerLMConfig:
    assert TIED.adaptive is not None
    return replace(TIED, tie_embeddings=tie, adaptive=replace(TIED.adaptive, **changes))


OWN_PROJECTIONS = {"tie_adaptive_proj": False}
UNTIED = {"tie_adaptive_weights": False, "tie_adaptive_proj": False}
# name → (config of seqtk, the same settings as fairseq options)
VARIANTS: dict[str, tuple[TransformerLMConfig, dict[str, Any]]] = {
    "tied": (TIED, {}),
    "cutoffs as a list that ends with the vocabulary": (TIED, {"adaptive_softmax_cutoff": [6, 13, V]}),
    "cutoffs in brackets": (TIED, {"adaptive_input_cutoff": "[6, 13]"}),
    "with dropout": (config_of(dropout=0.2), {"adaptive_softmax_dropout": 0.2}),
    "separate projections": (config_of(tie_projections=False), OWN_PROJECTIONS),
    "untied": (config_of(tie=False, tie_projections=False), UNTIED),
    "untied with other widths": (
        config_of(tie=False, tie_projections=False, softmax_factor=1.5),
        {**UNTIED, "adaptive_softmax_factor": 1.5},
    ),
    "softmax only": (
        config_of(tie=False, tie_projections=False, input_factor=None),
        {**UNTIED, "adaptive_input": False, "adaptive_input_cutoff": None},
    ),
    "input only": (
        config_of(tie=False, tie_projections=False, softmax_factor=None),
        {**UNTIED, "adaptive_softmax_cutoff": None},
    ),
}


def fairseq_state(model: TransformerLM) -> dict[str, Tensor]:
    """Returns seqtk's parameters in fairseq's format: an untied head is one tensor with transposed projections."""
    config, adaptive = model.config, model.config.adaptive
    assert adaptive is not None
    state = {fairseq_name(name): tensor for name, tensor in model.state_dict().items()}
    state |= {f"decoder.{name}": torch.ones(1) for name in ("version", "embed_tokens._float_tensor")}
    head = "decoder.adaptive_softmax"
    if adaptive.softmax_factor is not None:
        state |= {f"{head}.version": torch.ones(1), f"{head}.head._float_tensor": torch.ones(1)}
        if not (config.tie_embeddings and adaptive.tie_projections):
            for tail in range(2):
                state[f"{head}.tail.{tail}.0.weight"] = state[f"{head}.tail.{tail}.0.weight"].T.contiguous()
        if not config.tie_embeddings:
            pieces = [state.pop(f"{head}.head.{name}_proj.weight") for name in ("word", "class")]
            state[f"{head}.head.weight"] = torch.cat(pieces)
    return state


def save(path: Path, state: dict[str, Tensor], **options: Any) -> Path:
    torch.save({"args": argparse.Namespace(**{**OPTIONS, **options}), "model": state}, path)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_and_weights_are_imported(tmp_path: Path, variant: str) -> None:
    config, options = VARIANTS[variant]
    model = TransformerLM(config, vocabulary=V).eval()
    imported = import_fairseq(save(tmp_path / "a.pt", fairseq_state(model), **options))
    assert imported.config == config
    again = imported.model()
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert len(list(again.parameters())) == len(list(model.parameters()))


def test_parameter_names_are_mapped_to_fairseq_names() -> None:
    assert {
        name: fairseq_name(name)
        for name in TransformerLM(TIED, vocabulary=V).state_dict()
        if not name.startswith("decoder.")
    } == {
        "embedding.tokens.bands.0.weight": "decoder.embed_tokens.embeddings.0.0.weight",
        "embedding.tokens.bands.1.weight": "decoder.embed_tokens.embeddings.1.0.weight",
        "embedding.tokens.bands.2.weight": "decoder.embed_tokens.embeddings.2.0.weight",
        "embedding.tokens.projections.0.weight": "decoder.embed_tokens.embeddings.0.1.weight",
        "embedding.tokens.projections.1.weight": "decoder.embed_tokens.embeddings.1.1.weight",
        "embedding.tokens.projections.2.weight": "decoder.embed_tokens.embeddings.2.1.weight",
        "head.classes": "decoder.adaptive_softmax.head.class_proj.weight",
        "head.bands.0": "decoder.adaptive_softmax.head.word_proj.weight",
        "head.bands.1": "decoder.adaptive_softmax.tail.0.2.weight",
        "head.bands.2": "decoder.adaptive_softmax.tail.1.2.weight",
        "head.projections.0": "decoder.adaptive_softmax.tail.0.0.weight",
        "head.projections.1": "decoder.adaptive_softmax.tail.1.0.weight",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adaptive_input_cutoff": "6,14"}, "adaptive_input_cutoff=[6, 14] and adaptive_softmax_cutoff=[6, 13] differ"),
        ({"adaptive_input_cutoff": "6,many"}, "the option 'adaptive_input_cutoff' is '6,many'"),
        ({"adaptive_input_cutoff": None}, "'adaptive_input_cutoff' is ''"),
        ({"adaptive_input_cutoff": 6}, "'adaptive_input_cutoff' is 6"),
        ({"adaptive_softmax_factor": 3}, "cannot share their embeddings"),
        ({"adaptive_input_factor": "wide"}, "the option 'adaptive_input_factor' is 'wide'"),
        ({"adaptive_input_cutoff": "6,99", "adaptive_softmax_cutoff": "6,99"}, "must be below the vocabulary size, 20"),
        ({"decoder_input_dim": 4}, "decoder_input_dim=4"),
        (UNTIED, "'decoder.adaptive_softmax.tail.0.0.weight' is"),
        ({"adaptive_softmax_cutoff": None, **UNTIED}, "has no tensor 'decoder.output_projection.weight'"),
    ],
)
def test_unsupported_options_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = save(tmp_path / "a.pt", fairseq_state(TransformerLM(TIED, vocabulary=V)), **options)
    with pytest.raises(UserError) as caught:
        import_fairseq(path)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_tied_tensors_that_differ_are_refused(tmp_path: Path) -> None:
    state = fairseq_state(TransformerLM(TIED, vocabulary=V))
    state["decoder.adaptive_softmax.tail.0.2.weight"] = torch.ones(7, 4)
    with pytest.raises(UserError, match=r"'decoder.adaptive_softmax.tail.0.2.weight' and .*1.0.weight' differ"):
        import_fairseq(save(tmp_path / "a.pt", state))
