"""Importing fairseq's lightconv models: options, old and new parameter names, and errors.

The tests save models of seqtk under fairseq's names. tests/parity uses checkpoints written by fairseq.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.attention.convolution import ConvolutionConfig, DynamicConvConfig, LightweightConvConfig
from seqtk.interop.fairseq import import_fairseq
from seqtk.interop.fairseq_keys import fairseq_name
from seqtk.models.transformer import TransformerConfig
from tests.unit.interop.test_fairseq import TINY, State, refusal, save, tiny

RATES = {"dropout": 0.2, "input_dropout": 0.1}
OPTIONS = {
    "arch": "lightconv",
    "encoder_conv_type": "lightweight",
    "decoder_conv_type": "dynamic",
    "encoder_conv_dim": 8,
    "decoder_conv_dim": 8,
    "encoder_kernel_size_list": [3],
    "decoder_kernel_size_list": [4, 5],
    "encoder_glu": True,
    "decoder_glu": True,
    "weight_softmax": True,
    "weight_dropout": 0.2,
    "input_dropout": 0.1,
}


def config_of(**fields: Any) -> TransformerConfig:
    """Returns the config of seqtk that corresponds to OPTIONS."""

    def layer(kind: type[ConvolutionConfig], kernel_size: int) -> ConvolutionConfig:
        return kind(heads=2, kernel_size=kernel_size, **{**RATES, **fields})

    encoder, decoder = (layer(LightweightConvConfig, 3),), (layer(DynamicConvConfig, 4), layer(DynamicConvConfig, 5))
    return replace(
        TINY,
        encoder=replace(TINY.encoder, self_attention=encoder),
        decoder=replace(TINY.decoder, self_attention=decoder),
    )


def fairseq_state(config: TransformerConfig) -> State:
    """Returns seqtk's parameters in fairseq's format, with the uninitialized bias of fairseq's dynamic convolution."""
    state = {}
    for name, tensor in tiny(config).state_dict().items():
        theirs = fairseq_name(name, lightconv=True)
        state[theirs] = tensor[:, None] if theirs.endswith("conv.weight") else tensor
    garbage = {f"decoder.layers.{layer}.conv.conv_bias": torch.full((1, 1, 8), 3e24) for layer in (0, 1)}
    return state | garbage


def saved(folder: Path, state: State, **options: Any) -> Path:
    return save(folder / "a.pt", state, {**OPTIONS, **options})


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"glu": False}, {"encoder_glu": False, "decoder_glu": 0}),
        ({"weight_softmax": False}, {"weight_softmax": False}),
        ({"dropout": 0.0, "input_dropout": 0.0}, {"weight_dropout": 0.0, "input_dropout": 0.0}),
    ],
)
def test_options_and_weights_are_imported(tmp_path: Path, fields: dict[str, Any], options: dict[str, Any]) -> None:
    config = config_of(**fields)
    state = fairseq_state(config)
    imported = import_fairseq(saved(tmp_path, state, **options))
    assert imported.config == config
    assert imported.model().state_dict().keys() == imported.state.keys()
    assert torch.equal(
        imported.state["encoder.blocks.0.self_attention.kernel"], state["encoder.layers.0.conv.weight"][:, 0]
    )
    for name, tensor in imported.state.items():
        assert torch.equal(tensor, state[fairseq_name(name, lightconv=True)].reshape(tensor.shape))


def test_one_kernel_size_applies_to_all_layers(tmp_path: Path) -> None:
    config = config_of()
    decoder = replace(config.decoder, self_attention=(config.decoder.self_attention[1],) * 2)
    state = fairseq_state(replace(config, decoder=decoder))
    assert import_fairseq(saved(tmp_path, state, decoder_kernel_size_list=[5])).config.decoder == decoder


def test_numbered_encoder_norms_are_renamed(tmp_path: Path) -> None:
    state = fairseq_state(config_of())
    old = {
        name.replace("layer_norm1", "layer_norms.0").replace("layer_norm2", "layer_norms.1"): tensor + 1
        for name, tensor in state.items()
        if name.startswith("encoder.layers.0.layer_norm")
    }
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.layers.0.layer_norm")}
    imported = import_fairseq(saved(tmp_path, kept | old))
    for ours in ("self_residual", "ffn_residual"):
        assert torch.equal(imported.state[f"encoder.blocks.0.{ours}.norm.weight"], torch.full((8,), 2.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder_conv_dim": 16}, "encoder_conv_dim=16"),
        ({"decoder_conv_type": "fixed"}, "decoder_conv_type=fixed"),
        ({"encoder_conv_type": None}, "encoder_conv_type=None"),
        ({"decoder_kernel_size_list": [3, 5, 7]}, "'decoder_kernel_size_list' has 3 sizes for 2 layers"),
        ({"decoder_kernel_size_list": "[3, 5]"}, "decoder_kernel_size_list"),
        ({"decoder_kernel_size_list": None}, "'decoder_kernel_size_list' is None"),
        ({"encoder_kernel_size_list": [5]}, "'encoder.layers.0.conv.weight' is 2 × 3"),
        ({"encoder_glu": False}, "'encoder.layers.0.linear1.weight' is 16 × 8"),
    ],
)
def test_unsupported_options_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refusal(saved(tmp_path, fairseq_state(config_of()), **options))
