"""Losses and word scores equal fairseq's eval-lm in every break mode, with and without a context window."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.data.blocks import BreakMode, ContextBlocks
from seqtk.data.plan import BatchingConfig
from seqtk.data.sources.databin import DataBin
from seqtk.generation.evaluation import score_stream
from seqtk.interop.fairseq import import_fairseq
from seqtk.interop.fairseq_lm import ImportedLanguageModel
from seqtk.models.base import Model

MODELS = ["transformer_lm", "transformer_lm_adaptive"]


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(golden: Path, name: str) -> Model:
    imported = import_fairseq(golden / "models" / name / "checkpoint.pt")
    assert isinstance(imported, ImportedLanguageModel)
    return imported.model()


def stored(golden: Path, name: str, file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((golden / "models" / name / file).read_text())
    return found


@pytest.mark.parametrize("window", [0, 32])
@pytest.mark.parametrize("break_mode", ["none", "complete", "complete_doc", "eos"])
def test_losses_equal_fairseq_eval_lm(
    golden: Path, name: str, model: Model, break_mode: BreakMode, window: int
) -> None:
    wanted = next(
        run
        for run in stored(golden, name, "eval_lm.json")
        if (run["sample_break_mode"], run["context_window"]) == (break_mode, window)
    )
    blocks = ContextBlocks(
        DataBin(golden / "data-bin" / "lm").split("test"),
        break_mode=break_mode,
        tokens_per_sample=wanted["tokens_per_sample"],
        context_window=window,
    )
    assert f"{len(blocks)} examples" in wanted["examples"]
    scores = score_stream([model], blocks, batching=BatchingConfig(max_tokens=2000), device=torch.device("cpu"))
    assert scores.tokens == wanted["evaluated_tokens"]
    bits = scores.nll / scores.tokens / math.log(2)
    assert bits == pytest.approx(wanted["loss_base2"], rel=1e-6)


def test_word_scores_equal_fairseq_eval_lm(golden: Path, name: str, model: Model) -> None:
    """fairseq prints word scores with six digits. Scores are stored for the first tokens of the stream."""
    data = DataBin(golden / "data-bin" / "lm")
    for run in stored(golden, name, "word_probs.json"):
        window = int(run["command"].split("--context-window ")[1].split()[0])
        mode = run["command"].split("--sample-break-mode ")[1].split()[0]
        blocks = ContextBlocks(data.split("test"), break_mode=mode, tokens_per_sample=64, context_window=window)
        scores = score_stream([model], blocks, batching=BatchingConfig(max_tokens=999), device=torch.device("cpu"))
        printed = [
            pair for sample in sorted(run["samples"], key=lambda sample: sample["id"]) for pair in sample["words"]
        ]
        tokens = data.vocabulary().tokens
        assert [word for word, _ in printed] == [tokens[id_] for id_ in blocks.items.stream(0, len(printed))]
        log_p = torch.tensor([log_p for _, log_p in printed])
        torch.testing.assert_close(torch.from_numpy(scores.log_p_N[: len(printed)]), log_p, rtol=0, atol=2e-5)
