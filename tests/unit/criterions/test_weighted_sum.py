"""A weighted sum of criteria: its value, one forward pass for all parts, and errors."""

from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.config import schema
from seqtk.criterions import CriterionConfig, Loss, criterions
from seqtk.data.encoder_batches import ClassBatch
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, trainer
from tests.unit.training.test_init_from import classifier

PLAIN: dict[str, Any] = {"criterion": "cross_entropy", "weight": 0.25}
SMOOTHED: dict[str, Any] = {
    "criterion": {"kind": "label_smoothed_cross_entropy", "label_smoothing": 0.2},
    "weight": 3.0,
}


def loss_of(kind: Any) -> tuple[Loss, int]:
    """Returns the loss of a fixed batch, and the number of forward passes."""
    torch.manual_seed(1)
    model = classifier("abcd", 3, dropout=0.0)
    batch = ClassBatch(torch.arange(2), 2, torch.tensor([[4, 5, 6], [7, 4, 1]]), torch.tensor([0, 2]))
    calls: list[Any] = []
    model.register_forward_hook(lambda *call: calls.append(call))
    tree = {"kind": kind} if isinstance(kind, str) else kind
    return criterions.build(schema.from_dict(CriterionConfig, tree))(model, batch), len(calls)


def test_sum_weights_each_criterion() -> None:
    summed, calls = loss_of({"kind": "sum", "parts": [PLAIN, SMOOTHED]})
    plain, smoothed = (loss_of(part["criterion"])[0] for part in (PLAIN, SMOOTHED))
    torch.testing.assert_close(summed.total, 0.25 * plain.total + 3 * smoothed.total)
    assert calls == 1
    assert float(summed.stats["loss"][0]) == pytest.approx(summed.total.item())
    assert {name: float(value) for name, (value, _) in summed.stats.items() if name != "loss"} == {
        name: float(value) for name, (value, _) in plain.stats.items() if name != "loss"
    }


def test_sum_of_one_criterion_equals_the_criterion(tiny_corpus: Path, tmp_path: Path) -> None:
    part = {"criterion": "cross_entropy", "weight": 1.0}
    trainer(tiny_corpus, tmp_path / "sum", criterion={"kind": "sum", "parts": [part]}, max_updates=3).fit()
    trainer(tiny_corpus, tmp_path / "one", criterion="cross_entropy", max_updates=3).fit()
    assert losses(tmp_path / "sum") == losses(tmp_path / "one")


def test_sum_without_parts_is_refused() -> None:
    with pytest.raises(UserError, match=r"criterion\.parts"):
        loss_of("sum")


def test_part_without_a_criterion_is_refused() -> None:
    with pytest.raises(UserError, match=r"criterion\.parts: .* no criterion"):
        loss_of({"kind": "sum", "parts": [PLAIN, {"weight": 1.0}]})


@pytest.mark.parametrize(
    "part",
    [
        {**PLAIN, "weight": 0},
        {"criterion": "cross_entropie"},
        {"criterium": "x"},
        {"criterion": {"label_smoothing": 0.1}},
    ],
)
def test_invalid_parts_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="parts"):
        schema.from_dict(CriterionConfig, {"kind": "sum", "parts": [part]}, key="criterion")
