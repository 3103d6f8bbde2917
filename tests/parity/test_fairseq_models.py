"""Imported translation models have the log-probabilities, features, losses and gradients of fairseq.

Tolerances are absolute, in nats, unless stated otherwise. fairseq's float32 results differ by up to 3.3e-6 from its
float64 results (see the head of each reference_logprobs.json), and so do the results of seqtk.
"""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqtk.attention import attentions
from seqtk.attention.convolution import ConvolutionConfig
from seqtk.criterions.cross_entropy import LabelSmoothedConfig, LabelSmoothedCrossEntropy
from seqtk.data.batch import TranslationBatch, collate_pairs
from seqtk.data.sources.databin import DataBin
from seqtk.data.vocabulary import PAD
from seqtk.interop.fairseq import Imported, import_fairseq
from seqtk.interop.fairseq_keys import fairseq_name
from seqtk.models import Model
from tests.parity.gradients import assert_gradient_norms

# checkpoint → (folder of its golden files, data-bin)
MODELS = {
    "transformer_postnorm": ("transformer_postnorm", "joined"),
    "transformer_postnorm_old_style": ("transformer_postnorm", "joined"),
    "transformer_prenorm": ("transformer_prenorm", "separate"),
    "lightconv_lightweight": ("lightconv_lightweight", "joined"),
    "lightconv_dynamic": ("lightconv_dynamic", "joined"),
}
PRE_NORM = ("transformer_prenorm", "lightconv_dynamic")
"""These models have a separate source embedding. The others share one embedding."""
UNUSED = {
    "transformer_prenorm": 2 * (48 + 64),  # fairseq's learned positions have two more rows on each side
    "lightconv_dynamic": (2 + 2) * 64,  # conv_bias, which is neither initialized nor used
}
"""Parameters of fairseq's models that no token uses."""


@functools.cache
def imported(golden: Path, name: str) -> Imported:
    return import_fairseq(golden / "models" / name / "checkpoint.pt")


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(golden: Path, name: str) -> Model:
    return imported(golden, name).model()


def reference(golden: Path, name: str, file: str) -> Any:
    return json.loads((golden / "models" / MODELS[name][0] / file).read_text())


def batch_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TranslationBatch:
    return collate_pairs([(i, np.array(source), np.array(target)) for i, (source, target) in enumerate(pairs)])


def unpadded(rows: list[list[int]]) -> list[list[int]]:
    return [[token for token in row if token != PAD] for row in rows]


def log_probs(model: Model, batch: TranslationBatch) -> torch.Tensor:
    """Returns the log-probability of each target, and 0 for padding."""
    all_BTV = model.head.log_probs(model(batch)[0])
    return all_BTV.gather(2, batch.target_BT[:, :, None]).squeeze(2) * (batch.target_BT != PAD)


def test_settings_of_the_model_are_imported(golden: Path, name: str) -> None:
    found = imported(golden, name)
    assert (found.source_lang, found.target_lang, found.label_smoothing, found.updates) == ("en", "de", 0.1, 400)
    positions = "learned" if name == "transformer_prenorm" else "sinusoidal"
    assert (found.config.pre_norm, found.config.positions) == (name in PRE_NORM, positions)
    assert found.config.share_embeddings == ("decoder" if name in PRE_NORM else "all")
    count = sum(parameter.numel() for parameter in found.model().parameters())
    assert count == reference(golden, name, "hyperparameters.json")["parameter_count"] - UNUSED.get(name, 0)


@pytest.mark.parametrize("name", ["lightconv_lightweight", "lightconv_dynamic"])
def test_kernel_sizes_equal_the_options_of_fairseq(golden: Path, name: str) -> None:
    config = imported(golden, name).config
    for stack in (config.encoder, config.decoder):
        assert [attentions.name_of(type(layer)) for layer in stack.self_attention] == [f"{name[10:]}_conv"] * 2
        layers = [layer for layer in stack.self_attention if isinstance(layer, ConvolutionConfig)]
        assert [(layer.heads, layer.kernel_size, layer.glu) for layer in layers] == [(4, 3, True), (4, 5, True)]
        rates = {(layer.dropout, layer.input_dropout) for layer in layers}
        assert rates == {(0.1 if "lightweight" in name else 0.0, 0.1)}


def test_old_checkpoint_format_gives_the_same_weights(golden: Path) -> None:
    old, new = imported(golden, "transformer_postnorm_old_style"), imported(golden, "transformer_postnorm")
    assert old.config == new.config
    assert old.state.keys() == new.state.keys()
    assert all(torch.equal(old.state[key], new.state[key]) for key in new.state)


@torch.no_grad()
def test_log_probabilities_equal_fairseq_within_1e_5(golden: Path, name: str, model: Model) -> None:
    pairs = reference(golden, name, "reference_logprobs.json")["pairs"]
    assert len(pairs) == 50
    batch = batch_of([(pair["source"], pair["tokens"]) for pair in pairs])
    together_BT = log_probs(model, batch)
    best_BT = model.head.log_probs(model(batch)[0]).argmax(dim=2)
    for row, pair in enumerate(pairs):
        wanted = torch.tensor(pair["logprobs"])
        alone = log_probs(model, batch_of([(pair["source"], pair["tokens"])]))[0]
        torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(together_BT[row, : len(wanted)], wanted, rtol=0, atol=1e-5)
        assert best_BT[row, : len(wanted)].tolist() == pair["argmax"]


@torch.no_grad()
def test_activations_equal_fairseq(golden: Path, name: str, model: Any) -> None:
    stored = reference(golden, name, "activations.json")
    sources = unpadded(stored["src_tokens"])
    batch = batch_of(list(zip(sources, unpadded(stored["target"]), strict=True)))
    memory_BSM, _ = model.encode(batch.source_BS)
    memory_SBM = torch.tensor(stored["encoder_out"]).view(stored["encoder_out_shape_time_batch_channel"])
    for row, source in enumerate(sources):  # fairseq pads on the left
        torch.testing.assert_close(
            memory_BSM[row, : len(source)], memory_SBM[-len(source) :, row], rtol=1e-5, atol=1e-5
        )
    features_BTD = model(batch)[0]
    if not name.startswith("lightconv"):  # fairseq returns no features of lightconv models
        first_TD = torch.tensor(stored["features_last_decoder_layer_row0"]).view(-1, features_BTD.shape[2])
        torch.testing.assert_close(features_BTD[0, : len(first_TD)], first_TD, rtol=1e-5, atol=1e-5)
    ours = log_probs(model, batch)
    for row, wanted in enumerate(stored["target_logprobs"]):
        length = int((batch.target_BT[row] != PAD).sum())
        torch.testing.assert_close(ours[row, :length], torch.tensor(wanted[:length]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_validation_loss_equals_fairseq_to_six_digits(golden: Path, name: str, model: Model) -> None:
    data = DataBin(golden / "data-bin" / MODELS[name][1], source_lang="en", target_lang="de")
    sources, targets = data.split("valid", "en"), data.split("valid", "de")
    order = sorted(range(len(sources)), key=lambda index: len(targets[index]))
    criterion = LabelSmoothedCrossEntropy(LabelSmoothedConfig(label_smoothing=imported(golden, name).label_smoothing))
    total = nll = weight = 0.0
    for start in range(0, len(order), 40):
        batch = collate_pairs([(index, sources[index], targets[index]) for index in order[start : start + 40]])
        loss = criterion(model, batch)
        total, nll, weight = total + float(loss.total), nll + float(loss.stats["nll"][0]), weight + loss.weight
    stored = reference(golden, name, "valid.json")
    assert weight == stored["sums_natural_log"]["ntokens"]
    nll_base2 = nll / weight / math.log(2)
    assert total / weight / math.log(2) == pytest.approx(stored["loss_base2"], rel=5e-7)
    assert nll_base2 == pytest.approx(stored["nll_loss_base2"], rel=5e-7)
    assert 2**nll_base2 == pytest.approx(stored["ppl"], rel=2e-6)


def test_gradients_equal_fairseq(golden: Path, name: str, model: Model) -> None:
    # Uses float64. In float32, a ReLU input near 0 may have a different sign, and so gradient, on a different CPU.
    model = model.double()
    stored = reference(golden, name, "gradients.json")
    batch = batch_of(list(zip(unpadded(stored["src_tokens"]), unpadded(stored["target"]), strict=True)))
    loss = LabelSmoothedCrossEntropy(LabelSmoothedConfig(label_smoothing=0.1))(model, batch)
    loss.total.backward()
    assert loss.weight == stored["ntokens"]
    assert loss.total.item() == pytest.approx(stored["loss_sum"], rel=1e-6)
    assert float(loss.stats["nll"][0]) == pytest.approx(stored["nll_sum"], rel=1e-6)

    def shared_fairseq_name(ours: str) -> str:
        theirs = fairseq_name(ours, lightconv=name.startswith("lightconv"))
        shared = theirs if name in PRE_NORM else "encoder.embed_tokens.weight"
        return shared if theirs == "decoder.embed_tokens.weight" else theirs

    assert_gradient_norms(model, stored, shared_fairseq_name, rel=1.5e-6)
