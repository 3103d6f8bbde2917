"""The exponential moving average of weights: formula, bit-exact resuming, and the weights used in validation."""

from pathlib import Path

import pytest
import torch
from torch import nn

from seqtk.checkpoint import model_file, trained_model
from seqtk.checkpoint.model_file import tensors_of
from seqtk.training.average import AverageConfig, WeightAverage
from tests.unit.training.helpers import losses, trainer


def test_average_equals_its_formula() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, AverageConfig(decay=0.75))
    expected = model.weight.detach().clone()
    for step in range(60):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 2))
        average.update(step, made=torch.tensor(True))
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_skipped_update_does_not_change_the_average() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, AverageConfig())
    before = average.tensors["weight"].clone()
    with torch.no_grad():
        model.weight.zero_()
    average.update(0, made=torch.tensor(False))
    assert torch.equal(average.tensors["weight"], before)


def test_resuming_is_bit_exact(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path / "whole", ema__decay=0.9).fit()
    trainer(tiny_corpus, tmp_path / "parts", ema__decay=0.9, max_updates=5).fit()
    trainer(tiny_corpus, tmp_path / "parts", ema__decay=0.9).fit()
    whole, parts = (model_file.read(tmp_path / run / "update_00000008/ema.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(tensor, parts.tensors[name]) for name, tensor in whole.tensors.items())
    assert losses(tmp_path / "whole", "valid")[-1] == losses(tmp_path / "parts", "valid")[-1]


@pytest.mark.parametrize("validate", [True, False])
def test_best_model_has_the_validated_weights(tiny_corpus: Path, tmp_path: Path, *, validate: bool) -> None:
    changes = {"validation__every": 8, "ema__validate": validate}
    run = trainer(tiny_corpus, tmp_path, **changes)
    run.fit()
    best = model_file.read(tmp_path / "best.safetensors").tensors
    name = "ema" if validate else "model"
    validated = model_file.read(tmp_path / f"update_00000008/{name}.safetensors").tensors
    trained = model_file.read(tmp_path / "update_00000008").tensors
    assert all(torch.equal(tensor, validated[name]) for name, tensor in best.items())
    assert all(torch.equal(tensor, trained[name]) for name, tensor in tensors_of(run.model).items())


def test_averaging_does_not_change_training(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path / "with", ema__decay=0.9).fit()
    trainer(tiny_corpus, tmp_path / "without").fit()
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_average_is_saved_as_a_model_file(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, ema__decay=0.9, max_updates=2).fit()
    loaded = trained_model.load(tmp_path / "update_00000002/ema.safetensors")
    average = model_file.read(tmp_path / "update_00000002/ema.safetensors").tensors
    assert all(torch.equal(tensor, average[name]) for name, tensor in tensors_of(loaded.model).items())


def test_resumed_run_may_start_averaging(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=3).fit()
    run = trainer(tiny_corpus, tmp_path, ema__decay=0.9)
    assert run.average is not None
    assert all(torch.equal(tensor, run.model.get_parameter(name)) for name, tensor in run.average.tensors.items())
