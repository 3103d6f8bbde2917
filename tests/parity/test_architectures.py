"""Named Transformer sizes have the same numbers of parameters and dropout rates as in fairseq."""

import json
from pathlib import Path

import pytest
import torch

from seqtk.config.schema import update
from seqtk.models import models
from seqtk.models.transformer import TransformerConfig

WMT = 32_768  # size of the joint vocabulary

DOCUMENTED = {
    ("transformer", WMT, WMT, "all"): 60_915_712,
    ("transformer_wmt_en_de", WMT, WMT, "all"): 60_915_712,
    ("transformer_vaswani_wmt_en_de_big", WMT, WMT, "all"): 209_911_808,
    ("transformer_wmt_en_de_big", WMT, WMT, "all"): 209_911_808,
    ("transformer_vaswani_wmt_en_fr_big", WMT, WMT, "all"): 209_911_808,
    ("transformer_wmt_en_de_big_t2t", WMT, WMT, "all"): 209_911_808 + 4_096,  # two final norms
    ("transformer_iwslt_de_en", 10_000, 10_000, "decoder"): 41_783_296,
}

NOT_YET = ("lightconv", "transformer_lm")


def parameter_count(name: str, *, source: int, target: int, share: str) -> int:
    config = update(models.config_type(name)(), "share_embeddings", share)
    with torch.device("meta"):
        model = models.build(config, source_vocabulary=source, target_vocabulary=target)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("setting", "count"), DOCUMENTED.items(), ids=lambda value: str(value))
def test_parameter_counts_equal_documented_counts(setting: tuple[str, int, int, str], count: int) -> None:
    name, source, target, share = setting
    assert parameter_count(name, source=source, target=target, share=share) == count


def lm_parameter_count(name: str, *, vocabulary: int, tied: bool) -> int:
    config = update(models.config_type(name)(), "tie_embeddings", tied)
    with torch.device("meta"):
        model = models.build(config, vocabulary=vocabulary)
    return sum(parameter.numel() for parameter in model.parameters())


def test_language_model_parameter_counts_equal_fairseq(golden: Path) -> None:
    entries = json.loads((golden / "architecture_parameter_counts.json").read_text())["architectures"]
    ours = [entry for entry in entries if entry["arch"].startswith("transformer_lm") and entry["arch"] in models]
    ends = ("", "_big", "_gpt", "_gpt2_small", "_wiki103", "_baevski_wiki103", "_baevski_gbw")
    assert {entry["arch"] for entry in ours} == {f"transformer_lm{end}" for end in ends}
    for entry in ours:
        tied = "--share-decoder-input-output-embed" in entry["options"] or entry["arch"].endswith("wiki103")
        count = lm_parameter_count(entry["arch"], vocabulary=entry["target_vocabulary"], tied=tied)
        assert count == entry["parameters"], entry


def test_adaptive_wikitext103_parameters_equal_fairseq() -> None:
    for name in ("transformer_lm_wiki103", "transformer_lm_baevski_wiki103"):
        assert lm_parameter_count(name, vocabulary=267_744, tied=True) == 246_933_504


@pytest.mark.parametrize(
    ("name", "layers", "dim"), [("transformer_lm_gpt2_medium", 36, 1280), ("transformer_lm_gpt2_big", 48, 1600)]
)
def test_language_model_parameter_count_equals_formula(name: str, layers: int, dim: int) -> None:
    """A block has 12 D² weights and 13 D biases and norm parameters. A model also has a norm and an embedding."""
    count = layers * (12 * dim**2 + 13 * dim) + 2 * dim + 1000 * dim
    assert lm_parameter_count(name, vocabulary=1000, tied=True) == count


def test_parameter_counts_equal_fairseq(golden: Path) -> None:
    entries = json.loads((golden / "architecture_parameter_counts.json").read_text())["architectures"]
    ours = [entry for entry in entries if not entry["arch"].startswith(NOT_YET)]  # translation Transformers only
    assert len(ours) == 10
    for entry in ours:
        share = "none"
        if "--share-all-embeddings" in entry["options"]:
            share = "all"
        elif "--share-decoder-input-output-embed" in entry["options"]:
            share = "decoder"
        sizes = {"source": entry["source_vocabulary"], "target": entry["target_vocabulary"]}
        assert parameter_count(entry["arch"], **sizes, share=share) == entry["parameters"], entry


@pytest.mark.parametrize(
    ("name", "dropouts"),
    {
        "transformer_wmt_en_de": (0.1, 0.0, 0.0),
        "transformer_iwslt_de_en": (0.1, 0.0, 0.0),
        "transformer_vaswani_wmt_en_de_big": (0.3, 0.0, 0.0),
        "transformer_wmt_en_de_big": (0.3, 0.1, 0.0),
        "transformer_wmt_en_de_big_t2t": (0.3, 0.1, 0.1),
        "transformer_vaswani_wmt_en_fr_big": (0.1, 0.0, 0.0),
    }.items(),
)
def test_dropout_rates_equal_fairseq(name: str, dropouts: tuple[float, float, float]) -> None:
    config = models.config_type(name)()
    assert isinstance(config, TransformerConfig)
    attention = {layer.dropout for layer in (*config.encoder.self_attention, *config.decoder.self_attention,
                                             *config.decoder.cross_attention)}  # fmt: skip
    assert (config.dropout, attention, config.activation_dropout) == (dropouts[0], {dropouts[1]}, dropouts[2])
    assert config.pre_norm is name.endswith("_t2t")
