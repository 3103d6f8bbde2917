"""Named sizes of convolutional models have the same numbers of parameters and dropout rates as in fairseq."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seqtk.attention import AttentionConfig
from seqtk.attention.convolution import ConvolutionConfig, DynamicConvConfig, LightweightConvConfig
from seqtk.config.schema import update
from seqtk.models import models
from seqtk.models.transformer import TransformerConfig

WMT = 32_768


def named_config(name: str, *, share: str, lightweight: bool) -> TransformerConfig:
    config = update(models.config_type(name)(), "share_embeddings", share)
    assert isinstance(config, TransformerConfig)
    if not lightweight:
        return config
    encoder, decoder = (
        replace(stack, self_attention=tuple(map(light, stack.self_attention)))
        for stack in (config.encoder, config.decoder)
    )
    return replace(config, encoder=encoder, decoder=decoder)


def light(layer: AttentionConfig) -> LightweightConvConfig:
    assert isinstance(layer, DynamicConvConfig)
    return LightweightConvConfig(**vars(layer))


def parameter_count(config: TransformerConfig, *, source: int, target: int) -> int:
    with torch.device("meta"):
        model = models.build(config, source_vocabulary=source, target_vocabulary=target)
    return sum(parameter.numel() for parameter in model.parameters())


def unused(config: TransformerConfig) -> int:
    """Returns the number of elements of `conv_bias`, which fairseq's dynamic convolution does not initialize or use."""
    return (config.encoder.layers + config.decoder.layers) * config.dim


@pytest.mark.parametrize(
    ("name", "lightweight", "size", "share", "count"),
    [
        ("lightconv_wmt_en_de_big", False, WMT, "all", 213_251_072),
        ("lightconv_wmt_en_de_big", True, WMT, "all", 208_867_504),
        ("lightconv_iwslt_de_en", False, 10_000, "decoder", 37_610_496),
    ],
)
def test_parameter_counts_equal_documented_counts(
    name: str, lightweight: bool, size: int, share: str, count: int
) -> None:
    config = named_config(name, share=share, lightweight=lightweight)
    assert parameter_count(config, source=size, target=size) == count - (0 if lightweight else unused(config))


def test_parameter_counts_equal_fairseq(golden: Path) -> None:
    entries = json.loads((golden / "architecture_parameter_counts.json").read_text())["architectures"]
    ours = [entry for entry in entries if entry["arch"].startswith("lightconv")]
    assert len(ours) == 8
    for entry in ours:
        lightweight = "conv-type lightweight" in entry["options"]
        share = "all" if "--share-all-embeddings" in entry["options"] else "decoder"
        config = named_config(entry["arch"], share=share, lightweight=lightweight)
        count = parameter_count(config, source=entry["source_vocabulary"], target=entry["target_vocabulary"])
        assert count == entry["parameters"] - (0 if lightweight else unused(config)), entry


@pytest.mark.parametrize(
    ("name", "rates", "glu"),
    [
        ("lightconv_wmt_en_de", (0.1, 0.0, 0.1), True),
        ("lightconv_iwslt_de_en", (0.1, 0.1, 0.0), False),
        ("lightconv_wmt_en_de_big", (0.3, 0.1, 0.1), True),
        ("lightconv_wmt_en_fr_big", (0.1, 0.1, 0.1), True),
        ("lightconv_wmt_zh_en_big", (0.2, 0.2, 0.1), True),
    ],
)
def test_dropout_rates_equal_fairseq(name: str, rates: tuple[float, float, float], glu: bool) -> None:
    """The rates are for blocks, for kernels and cross-attention, and for the inputs of convolutions."""
    config = named_config(name, share="all", lightweight=False)
    layers = [*config.encoder.self_attention, *config.decoder.self_attention]
    convolutions = [layer for layer in layers if isinstance(layer, ConvolutionConfig)]
    assert len(convolutions) == len(layers) == 13
    assert [layer.kernel_size for layer in convolutions] == [3, 7, 15, 31, 31, 31, 31, 3, 7, 15, 31, 31, 31]
    assert {(config.dropout, layer.dropout, layer.input_dropout) for layer in convolutions} == {rates}
    assert {layer.dropout for layer in config.decoder.cross_attention} == {rates[1]}  # type: ignore[attr-defined]
    assert {layer.glu for layer in convolutions} == {glu}
