"""seqtk-resize changes the maximum input length of a model."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtk.attention import AttentionConfig
from seqtk.attention.cosformer import CosformerConfig
from seqtk.attention.linformer import LinformerConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.synthesizer import SynthesizerDenseConfig, SynthesizerRandomConfig
from seqtk.checkpoint import model_file, trained_model
from seqtk.checkpoint.model_file import ModelFile, tensors_of
from seqtk.cli import resize
from seqtk.config import schema
from seqtk.data.vocabulary import Vocabulary
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.models.transformer import TransformerConfig
from seqtk.tasks.translation import TranslationConfig, TranslationTask
from seqtk.training.config import TrainConfig

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a random model with the given attention layers."""
    numbers = itertools.count()

    def write(self_attention: AttentionConfig, cross_attention: AttentionConfig) -> Path:
        config = TransformerConfig(
            dim=8,
            ffn_dim=16,
            heads=2,
            encoder=EncoderConfig(layers=2, self_attention=(self_attention, SoftmaxConfig())),
            decoder=DecoderConfig(layers=1, self_attention=(self_attention,), cross_attention=(cross_attention,)),
        )
        texts = {"source.lang": "de", "target.lang": "en"}
        texts |= dict.fromkeys(["source.dict", "target.dict"], Vocabulary(list("abcdef")).to_text())
        task = TranslationTask(TranslationConfig(), assets=texts)
        model = task.model(config)
        path = tmp_path / f"{next(numbers)}.safetensors"
        train = TrainConfig(task=task.config, model=config)
        model_file.write(path, ModelFile(tensors_of(model), schema.to_dict(train), task.assets(), {"update": 3}))
        return path

    return write


@pytest.mark.parametrize(
    "self_attention", [SynthesizerRandomConfig(max_length=12), SynthesizerDenseConfig(max_length=12)]
)
@pytest.mark.parametrize("max_length", [9, 30])
def test_resized_model_has_equal_outputs_on_short_input(
    self_attention: AttentionConfig, max_length: int, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write(self_attention, LinformerConfig(rank=3, max_length=20))
    new = tmp_path / "new.safetensors"
    resize.main([f"checkpoint={old}", f"max_length={max_length}", f"output={new}"])
    assert capsys.readouterr().out == f"Longest input of the attention layers: 12, 20 → {max_length}\n{new}\n"
    before, after = trained_model.load(old), trained_model.load(new)
    assert {layer.max_length for _, layer in after.model.attention_layers()} == {None, max_length}
    assert after.info["update"] == 3
    assert after.info["resized"] == {"from": [12, 20], "to": max_length}
    pair = (0, np.array([4, 5, 6, 7, 2]), np.array([6, 5, 4, 2]))
    batch = before.task.collate([pair, pair])
    with torch.no_grad():
        torch.testing.assert_close(after.model(batch)[0], before.model(batch)[0])


def test_resizing_twice_gives_equal_files(write: Write, tmp_path: Path) -> None:
    old = write(SynthesizerRandomConfig(max_length=4), SoftmaxConfig())
    for name in "ab":
        resize.main([f"checkpoint={old}", "max_length=7", f"output={tmp_path / name}"])
    a, b = (model_file.read(tmp_path / name) for name in "ab")
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.mark.parametrize(
    ("self_attention", "arguments", "words"),
    [
        (SynthesizerRandomConfig(max_length=4), "checkpoint={old} max_length=7", "output="),
        (SynthesizerRandomConfig(max_length=4), "max_length=7 output={new}", "checkpoint="),
        (SynthesizerRandomConfig(max_length=4), "checkpoint={old} output={new}", "max_length"),
        (SynthesizerRandomConfig(max_length=4), "checkpoint={old} max_length=0 output={new}", "max_length="),
        (SynthesizerRandomConfig(max_length=4), "checkpoint={old} max_length=4 output={new}", "max_length=4"),
        (SynthesizerRandomConfig(max_length=4), "checkpoint={old} max_length=7 output={new}/x", "there is no folder"),
        (SynthesizerRandomConfig(max_length=4), "checkpoint={old}.x max_length=7 output={new}", "does not exist"),
        (SoftmaxConfig(), "checkpoint={old} max_length=7 output={new}", "nothing to resize"),
        (CosformerConfig(max_length=9), "checkpoint={old} max_length=7 output={new}", "'cosformer'"),
    ],
)
def test_error_names_the_key(
    self_attention: AttentionConfig,
    arguments: str,
    words: str,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = write(self_attention, SoftmaxConfig()), tmp_path / "new.safetensors"
    with pytest.raises(SystemExit) as ended:
        resize.main(arguments.format(old=old, new=new).split())
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not new.exists()


@pytest.mark.parametrize("config", [SynthesizerRandomConfig(max_length=12), SynthesizerDenseConfig(max_length=12)])
def test_length_that_exceeds_memory_is_refused(
    config: AttentionConfig, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(config, SoftmaxConfig())
    with pytest.raises(SystemExit) as ended:
        resize.main([f"checkpoint={model}", "max_length=9999999999", f"output={tmp_path / 'long.safetensors'}"])
    assert ended.value.code == 2
    assert "memory" in capsys.readouterr().err
