"""Label smoothing, positions, sinusoidal tables and collated batches equal fairseq."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqtk.data.batch import collate_pairs
from seqtk.data.vocabulary import EOS, PAD
from seqtk.modules.embedding import SinusoidalPositions, sinusoids
from seqtk.modules.head import LinearHead

FIRST_POSITION = 2  # fairseq's position of a row's first token


@pytest.fixture(scope="module")
def tables(golden: Path) -> Any:
    return json.loads((golden / "tables.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_label_smoothing_equals_fairseq(tables: Any, dtype: torch.dtype) -> None:
    digits = {torch.float32: 1e-6, torch.float64: 1e-9}[dtype]  # the tables have ten digits
    for case in tables["label_smoothing"]["cases"]:
        assert case["ignore_index"] == PAD
        logits_BTV = torch.tensor(case["logits"], dtype=dtype).view(case["logits_shape"]).requires_grad_()
        vocabulary = logits_BTV.shape[2]
        head = LinearHead(vocabulary, vocabulary).to(dtype)
        torch.nn.init.eye_(head.weight)  # so that the features equal the logits
        losses = head(logits_BTV, torch.tensor(case["target"]), label_smoothing=case["epsilon"])
        losses.total.backward()
        assert losses.total.item() == pytest.approx(case["loss_sum_float64"], rel=digits)
        assert losses.nll.item() == pytest.approx(case["nll_sum_float64"], rel=digits)
        wanted = torch.tensor(case["gradient_of_loss_sum_by_logits"], dtype=dtype).view_as(logits_BTV)
        assert logits_BTV.grad is not None
        torch.testing.assert_close(logits_BTV.grad, wanted, rtol=1e-5, atol=2e-7)  # stored in float32


def real_positions(real_BT: torch.Tensor) -> torch.Tensor:
    """Returns positions counted from the first real token, as fairseq numbers its left-padded rows."""
    return (real_BT.cumsum(1) - 1).clamp(min=0)


def test_positions_equal_fairseq(tables: Any) -> None:
    for case in tables["positions"]["cases"]:
        tokens_BT = torch.tensor(case["tokens"])
        real_BT = tokens_BT != PAD
        ours_BT = real_positions(real_BT) + FIRST_POSITION
        assert ours_BT[real_BT].tolist() == torch.tensor(case["positions"])[real_BT].tolist(), case["name"]


def test_sinusoidal_tables_equal_fairseq(tables: Any) -> None:
    for table in tables["sinusoidal"]["tables"]:
        wanted = torch.tensor(table["table"])[FIRST_POSITION:]
        torch.testing.assert_close(sinusoids(len(wanted), table["embedding_dim"]), wanted, rtol=0, atol=1e-6)
    looked_up = tables["sinusoidal"]["looked_up"]
    tokens_BT = torch.tensor(looked_up["tokens"])
    real_BT = tokens_BT != PAD
    ours_BTD = SinusoidalPositions(looked_up["embedding_dim"])(real_positions(real_BT))
    torch.testing.assert_close(ours_BTD[real_BT], torch.tensor(looked_up["rows"])[real_BT], rtol=0, atol=1e-6)


def test_collated_batches_equal_fairseq(tables: Any) -> None:
    """Both have the same rows. fairseq sorts them by decreasing source length and pads the source on the left."""
    stored = tables["collate"]
    examples = {example["id"]: example for example in stored["examples"]}
    batch = collate_pairs(
        [(index, np.array(examples[index]["source"]), np.array(examples[index]["target"])) for index in stored["id"]]
    )
    assert batch.ids_B.tolist() == stored["id"]
    assert batch.weight == stored["ntokens"]
    assert batch.target_BT.tolist() == stored["target"]
    assert batch.previous_BT.tolist() == stored["prev_output_tokens"]
    for ours, theirs, length in zip(batch.source_BS.tolist(), stored["src_tokens"], stored["src_lengths"], strict=True):
        padding = [PAD] * (len(theirs) - length)
        assert theirs == [*padding, *ours[:length]]
        assert ours == [*ours[:length], *padding]
        assert ours[length - 1] == EOS
