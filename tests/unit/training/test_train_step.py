"""The penalties of attention layers are added to the loss once per update, for any number of micro-batches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.criterions import criterions
from seqtk.data.batch import Batch
from seqtk.training.parallel import TrainStep
from seqtk.training.trainer import Trainer
from tests.unit.training.helpers import sums_of, trainer

PENALIZED = {"kind": "feedforward_kernel", "kernel": "oglu", "depth": 2, "orthogonality": 3.0}


def penalized_trainer(corpus: Path, save_dir: Path, **changes: Any) -> Trainer:
    """Returns a trainer in which every attention layer has a large penalty."""
    changes = {"model__attention": PENALIZED, "model__decoder__cross_attention": PENALIZED} | changes
    run = trainer(corpus, save_dir, model__dropout=0.0, **changes)
    torch.manual_seed(0)
    for _, layer in run.model.attention_layers():
        for name, parameter in layer.named_parameters():
            if name.endswith("matrix_HEE"):
                torch.nn.init.normal_(parameter)
    return run


def batch_of(run: Trainer, indices: range) -> Batch:
    return run.task.collate([run.train_set[index] for index in indices])


def penalty_of(run: Trainer) -> float:
    penalties = [layer.aux_loss() for _, layer in run.model.attention_layers()]
    assert len(penalties) == 3
    return sum(penalty.item() for penalty in penalties if penalty is not None)


def test_loss_includes_each_penalty_once(tiny_corpus: Path, tmp_path: Path) -> None:
    run = penalized_trainer(tiny_corpus, tmp_path)
    batch = batch_of(run, range(8))
    step = TrainStep(run.model, criterions.build(run.config.criterion)).eval()
    total, _, _ = step(batch)
    alone = step.criterion(run.model, batch).total
    assert penalty_of(run) > 1
    assert (total - alone).item() / batch.weight == pytest.approx(penalty_of(run), rel=1e-4)


@pytest.mark.parametrize("cut", [1, 3])
def test_gradient_includes_each_penalty_once(tiny_corpus: Path, tmp_path: Path, cut: int) -> None:
    """The gradient equals the gradient of loss / weight + penalties."""
    run = penalized_trainer(tiny_corpus, tmp_path, clip_norm=0.0)
    parts = [batch_of(run, range(start, start + 24 // cut)) for start in range(0, 24, 24 // cut)]
    weight = sum(batch.weight for batch in parts)
    criterion = criterions.build(run.config.criterion)
    loss = sum(criterion(run.model, batch).total for batch in parts) / weight
    for _, layer in run.model.attention_layers():
        penalty = layer.aux_loss()
        assert penalty is not None
        loss = loss + penalty
    expected = torch.autograd.grad(loss, list(run.model.parameters()), allow_unused=True)
    norm = torch.nn.utils.get_total_norm([gradient for gradient in expected if gradient is not None])
    run.update(parts)
    assert sums_of(run)["norm"] == pytest.approx(float(norm), rel=1e-4)
