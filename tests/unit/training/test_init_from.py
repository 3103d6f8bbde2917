"""A new run starts from the weights of a trained model."""

from pathlib import Path

import pytest
import torch

from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import tensors_of
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trainer(tiny_corpus, folder, max_updates=2).fit()
    return folder


def test_weights_are_those_of_the_model(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path, init_from=str(trained), seed=2)
    saved = model_file.read(trained).tensors
    assert all(torch.equal(tensor, saved[name]) for name, tensor in tensors_of(run.model).items())
    assert run.state.update == 0


def test_a_resumed_run_keeps_its_own(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, init_from=str(trained), max_updates=2).fit()
    again = trainer(tiny_corpus, tmp_path, init_from=str(trained), max_updates=3)
    own = model_file.read(tmp_path / "update_00000002").tensors
    assert all(torch.equal(tensor, own[name]) for name, tensor in tensors_of(again.model).items())


def test_another_shape_is_refused(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="init_from"):
        trainer(tiny_corpus, tmp_path, init_from=str(trained), model__ffn_dim=16)


@pytest.mark.parametrize("counts_only", [True, False])
def test_vocabularies_are_compared(trained: Path, tiny_corpus: Path, tmp_path: Path, *, counts_only: bool) -> None:
    contents = model_file.read(trained)
    lines = contents.assets["source.dict"].splitlines()
    lines[0] = f"{lines[0].rpartition(' ')[0] if counts_only else 'another-token'} 1"
    contents.assets["source.dict"] = "".join(f"{line}\n" for line in lines)
    model_file.write(tmp_path / "other.safetensors", contents)
    if counts_only:
        trainer(tiny_corpus, tmp_path / "run", init_from=str(tmp_path / "other.safetensors"))
        return
    with pytest.raises(UserError, match=r"init_from.*source\.dict"):
        trainer(tiny_corpus, tmp_path / "run", init_from=str(tmp_path / "other.safetensors"))
