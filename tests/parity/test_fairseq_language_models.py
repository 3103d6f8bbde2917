"""Imported language models have the log-probabilities, features, losses and gradients of fairseq."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqtk.checkpoint import trained_model
from seqtk.cli import import_fairseq as command
from seqtk.config import schema
from seqtk.criterions.cross_entropy import CrossEntropy, CrossEntropyConfig
from seqtk.data.batch import LanguageBatch
from seqtk.data.blocks import BreakMode, TokenBlocks, collate_blocks
from seqtk.data.sources.databin import DataBin
from seqtk.data.vocabulary import EOS, PAD
from seqtk.interop.fairseq import import_fairseq
from seqtk.interop.fairseq_keys import fairseq_name
from seqtk.interop.fairseq_lm import ImportedLanguageModel
from seqtk.models.language_model import TransformerLM
from seqtk.modules.adaptive import AdaptiveConfig, AdaptiveHead
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import TrainStep, start_engine
from seqtk.training.validation import validate
from tests.parity.gradients import assert_gradient_norms

NAMES = ("transformer_lm", "transformer_lm_adaptive")


@pytest.fixture(scope="module", params=NAMES)
def stored_in(request: pytest.FixtureRequest, golden: Path) -> Path:
    """Returns the folder of a fairseq model and its stored results."""
    return golden / "models" / str(request.param)


@pytest.fixture(scope="module")
def imported(stored_in: Path) -> ImportedLanguageModel:
    found = import_fairseq(stored_in / "checkpoint.pt")
    assert isinstance(found, ImportedLanguageModel)
    return found


@pytest.fixture
def model(imported: ImportedLanguageModel) -> TransformerLM:
    return imported.model()


def reference(stored_in: Path, file: str) -> Any:
    return json.loads((stored_in / file).read_text())


def sentence(tokens: list[int]) -> LanguageBatch:
    return collate_blocks([(0, np.array([EOS, *tokens]))])


def test_settings_of_the_language_model_are_imported(stored_in: Path, imported: ImportedLanguageModel) -> None:
    assert (imported.tokens_per_sample, imported.break_mode, imported.updates) == (64, "none", 300)
    adaptive = AdaptiveConfig(cutoffs=(100, 250), dropout=0.1) if "adaptive" in stored_in.name else None
    assert (imported.config.adaptive, imported.config.tie_embeddings) == (adaptive, True)
    assert imported.config.pre_norm is (adaptive is not None)
    count = sum(parameter.numel() for parameter in imported.model().parameters())
    assert count == reference(stored_in, "hyperparameters.json")["parameter_count"]


@torch.no_grad()
def test_log_probabilities_equal_fairseq_within_1e_5(stored_in: Path, model: TransformerLM) -> None:
    pairs = reference(stored_in, "reference_logprobs.json")["pairs"]
    assert len(pairs) == 50
    together = collate_blocks([(row, np.array([EOS, *pair["tokens"]])) for row, pair in enumerate(pairs)])
    together_BTV = model.head.log_probs(model(together)[0])
    for row, pair in enumerate(pairs):
        alone_TV = model.head.log_probs(model(sentence(pair["tokens"]))[0])[0]
        target_T1 = torch.tensor(pair["tokens"])[:, None]
        wanted = torch.tensor(pair["logprobs"])
        for ours_TV in (alone_TV, together_BTV[row, : len(wanted)]):
            torch.testing.assert_close(ours_TV.gather(1, target_T1).squeeze(1), wanted, rtol=0, atol=1e-5)
        assert alone_TV.argmax(dim=1).tolist() == pair["argmax"]


@torch.no_grad()
def test_features_and_probabilities_equal_fairseq(stored_in: Path, model: TransformerLM) -> None:
    stored = reference(stored_in, "activations.json")
    previous = stored["prev_output_tokens"]
    batch = sentence([*previous[1:], EOS])
    assert batch.previous_BT[0].tolist() == previous
    features_TD = model(batch)[0][0]
    wanted_TD = torch.tensor(stored["features"]).view(stored["features_shape_time_channel"])
    torch.testing.assert_close(features_TD, wanted_TD, rtol=1e-5, atol=1e-5)
    ours = model.head.log_probs(features_TD[[0, -1]])
    torch.testing.assert_close(ours, torch.tensor(stored["logprobs_first_and_last_position"]), rtol=0, atol=1e-5)


def loss_of(model: TransformerLM, blocks: TokenBlocks) -> tuple[float, int]:
    """Returns the loss in nats, summed over all targets, and the number of targets."""
    criterion = CrossEntropy(CrossEntropyConfig())
    total, weight = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(blocks), 30):
            loss = criterion(model, collate_blocks([blocks[i] for i in range(start, min(start + 30, len(blocks)))]))
            total, weight = total + float(loss.total), weight + loss.weight
    return total, weight


def ignored_by_fairseq(model: TransformerLM, batch: LanguageBatch) -> Tensor:
    """Returns the part of the loss that fairseq's adaptive criterion ignores: -log p(w | band) of one word w per tail.

    The criterion ignores target 1, which is PAD, in every softmax. In the softmax of a tail, 1 is the second word.
    fairseq's eval-lm uses log-probabilities and includes these words.
    """
    if not isinstance(model.head, AdaptiveHead):
        return torch.zeros(())
    log_p_BTV = model.head.log_probs(model(batch)[0])
    losses = []
    for start, size in zip(model.head.cut.starts[1:], model.head.cut.sizes[1:], strict=True):
        log_p_MW = log_p_BTV[batch.target_BT == start + PAD][:, start : start + size]
        losses.append((log_p_MW.logsumexp(1) - log_p_MW[:, PAD]).sum())
    return torch.stack(losses).sum()


@torch.no_grad()
def test_validation_loss_equals_fairseq_to_six_digits(golden: Path, stored_in: Path, model: TransformerLM) -> None:
    stored = reference(stored_in, "valid.json")
    valid = DataBin(golden / "data-bin" / "lm").split("valid")
    blocks = TokenBlocks(valid, tokens_per_sample=64)
    total, weight = loss_of(model, blocks)
    assert weight == stored["sums_natural_log"]["ntokens"] == valid.total
    ignored = float(ignored_by_fairseq(model, collate_blocks([blocks[i] for i in range(len(blocks))])))
    assert (ignored > 0) is (model.config.adaptive is not None)
    base2 = (total - ignored) / weight / math.log(2)
    assert base2 == pytest.approx(stored["loss_base2"], rel=5e-7)
    assert 2**base2 == pytest.approx(stored["ppl"], rel=2e-6)


@pytest.mark.parametrize("break_mode", ["none", "complete", "complete_doc", "eos"])
def test_loss_in_every_break_mode_equals_fairseq(
    golden: Path, stored_in: Path, model: TransformerLM, break_mode: BreakMode
) -> None:
    stored = next(
        run
        for run in reference(stored_in, "eval_lm.json")
        if run["sample_break_mode"] == break_mode and run["context_window"] == 0
    )
    blocks = TokenBlocks(
        DataBin(golden / "data-bin" / "lm").split("test"),
        break_mode=break_mode,
        tokens_per_sample=stored["tokens_per_sample"],
    )
    assert f"{len(blocks)} examples" in stored["examples"]
    total, weight = loss_of(model, blocks)
    assert weight == stored["evaluated_tokens"]
    assert total / weight / math.log(2) == pytest.approx(stored["loss_base2"], rel=1e-6)


def test_gradients_equal_fairseq(golden: Path, stored_in: Path, model: TransformerLM) -> None:
    stored = reference(stored_in, "gradients.json")
    blocks = TokenBlocks(DataBin(golden / "data-bin" / "lm").split("test"), tokens_per_sample=64)
    batch = collate_blocks([blocks[index] for index in stored["id"]])
    assert (batch.previous_BT.tolist(), batch.target_BT.tolist()) == (stored["src_tokens"], stored["target"])
    loss = CrossEntropy(CrossEntropyConfig())(model, batch)
    total = loss.total - ignored_by_fairseq(model, batch)
    total.backward()  # type: ignore[no-untyped-call]
    assert loss.weight == stored["ntokens"]
    assert total.item() == pytest.approx(stored["loss_sum"], rel=1e-6)
    assert_gradient_norms(model, stored, fairseq_name, rel=2e-6)


def test_imported_model_file_has_the_same_loss(
    golden: Path, stored_in: Path, model: TransformerLM, tmp_path: Path
) -> None:
    output, data = tmp_path / "lm.safetensors", golden / "data-bin" / "lm"
    options = [f"data={data}", "remove_bpe=sentencepiece", f"output={output}"]
    command.main([f"checkpoint={stored_in / 'checkpoint.pt'}", *options])
    loaded = trained_model.load(output)
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    saved = schema.from_dict(TrainConfig, loaded.config)
    config = replace(saved, task=replace(saved.task, data=str(data)))
    objective = TrainStep(loaded.model, CrossEntropy(CrossEntropyConfig()))
    figures, outputs = validate(objective, loaded.task, config, engine=start_engine(device="cpu"))
    total, weight = loss_of(model, TokenBlocks(DataBin(data).split("valid"), tokens_per_sample=64))
    assert figures["bits_per_token"] == pytest.approx(total / weight / math.log(2), rel=5e-7)
    assert figures["ppl"] == pytest.approx(math.exp(total / weight), rel=2e-6)
    assert "bits_per_byte" not in figures  # fairseq's data-bin does not record the size of its text
    assert not outputs
