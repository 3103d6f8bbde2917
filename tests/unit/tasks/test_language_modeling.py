"""The language modeling task: metrics, shards, and bit-exact resuming."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint import model_file, trained_model
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.metrics import Evaluation, metrics
from seqtk.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from seqtk.tasks.translation import TranslationConfig, TranslationTask
from seqtk.training.trainer import Trainer
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import text_trainer

LINES = [f"the {a} sees the {b}, and {b} is glad.\n" for a in ("dog", "cat", "bird") for b in ("tree", "house", "sea")]
MODEL = {"kind": "transformer_lm", "dim": 16, "ffn_dim": 32, "heads": 2, "layers": 2, "layer_drop": 0.2}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Returns a folder with three shards of byte-tokenized text, which have the same validation text."""
    for number in range(3):
        (tmp_path / f"part{number}").write_text("".join(LINES[number::3]))
    (tmp_path / "valid").write_text("the dög sees the sea\n")
    for number in range(3):
        make(tmp_path, f"bin{number}", train=f"{tmp_path}/part{number}")
    return tmp_path


def make(folder: Path, name: str, **changes: Any) -> str:
    config = PreprocessConfig(tokens="bytes", valid=(f"{folder}/valid",), destdir=f"{folder}/{name}", workers=1)
    preprocess(replace(config, **changes))
    return f"{folder}/{name}"


def trainer(data: str, save_dir: Path, **changes: Any) -> Trainer:
    return text_trainer(data, save_dir, **{"model": MODEL, "batch": {"max_tokens": 64}, **changes})


def logged(save_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (save_dir / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def values(task: LanguageModelingTask, split: str, *, nll: float, targets: float) -> dict[str, float]:
    """Returns the metrics for `targets` targets whose total negative log-likelihood is `nll` nats."""
    evaluation = Evaluation({"nll": (nll, targets)}, text=task.text_size(split, targets))
    return {name: score.value for name, score in metrics.compute(task.metrics, evaluation).items()}


def test_metrics_per_byte_and_word_equal_their_definitions(corpus: Path) -> None:
    task = LanguageModelingTask(LanguageModelingConfig(data=f"{corpus}/bin0"))
    nll = 50.0
    bits = nll / math.log(2)
    assert values(task, "valid", nll=nll, targets=22.0) == pytest.approx(
        {
            "nll": nll / 22,
            "ppl": math.exp(nll / 22),
            "bits_per_token": bits / 22,
            "bits_per_byte": bits / 22,
            "bits_per_character": bits / 21,
            "word_ppl": math.exp(nll / 6),  # five words and the end of the line
        }
    )


def test_partly_scored_text_has_no_per_byte_metrics(corpus: Path) -> None:
    task = LanguageModelingTask(LanguageModelingConfig(data=f"{corpus}/bin0"))
    assert values(task, "valid", nll=50.0, targets=21.0).keys() == {"nll", "ppl", "bits_per_token"}


def test_training_reduces_loss_and_model_loads_without_data(corpus: Path, tmp_path: Path) -> None:
    assert trainer(f"{corpus}/bin0", tmp_path / "run", validation__metric="bits_per_byte").fit().signal == 0
    train = [line["loss"] for line in logged(tmp_path / "run", "train")]
    assert train[-1] < train[0] < 6.5
    valid = logged(tmp_path / "run", "valid")[-1]
    assert valid["bits_per_byte"] == pytest.approx(valid["nll"] / math.log(2))
    assert valid["best_bits_per_byte"] <= valid["bits_per_byte"]
    loaded = trained_model.load(tmp_path / "run")
    assert isinstance(loaded.task, LanguageModelingTask)
    assert loaded.task.text([4 + byte for byte in "Größe\n".encode()]) == "Größe\n"


def test_resuming_is_bit_exact(corpus: Path, tmp_path: Path) -> None:
    data = ",".join(f"{corpus}/bin{number}" for number in range(3))
    trainer(data, tmp_path / "whole").fit()
    for updates in (2, 5, 9):
        trainer(data, tmp_path / "parts", max_updates=updates).fit()
    whole, parts = (model_file.read(tmp_path / name / "update_00000009").tensors for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_epochs_alternate_between_shards(corpus: Path, tmp_path: Path) -> None:
    data = ",".join(f"{corpus}/bin{number}" for number in range(3))
    task = LanguageModelingTask(LanguageModelingConfig(data=data))
    texts = ["".join(LINES[number::3]) for number in (0, 1, 2, 0)]
    for epoch, text in enumerate(texts, start=1):
        blocks = task.training_set(epoch)
        assert task.text([id_ for index in range(len(blocks)) for id_ in blocks[index][1][1:]]) == text
    other = make(corpus, "words", tokens="words", train=f"{corpus}/part0")
    with pytest.raises(UserError, match="different dictionaries"):
        LanguageModelingTask(LanguageModelingConfig(data=f"{corpus}/bin0,{other}"))
    with pytest.raises(UserError, match="no data-bin folder"):
        LanguageModelingTask(LanguageModelingConfig(data=f"{corpus}/bin0,{corpus}/bin7"))


@pytest.mark.parametrize("decode", [False, True])
def test_bleu_as_validation_metric_is_refused(corpus: Path, tmp_path: Path, decode: bool) -> None:
    with pytest.raises(UserError, match=r"validation\.metric=bleu(.|\n)*outputs(.|\n)*ppl") as caught:
        trainer(f"{corpus}/bin0", tmp_path / "run", validation__metric="bleu", validation__decode=decode)
    assert "decode" not in str(caught.value)


def test_bits_per_byte_without_text_size_is_refused(corpus: Path, tmp_path: Path) -> None:
    data = shutil.copytree(f"{corpus}/bin0", tmp_path / "bin")
    trainer(str(data), tmp_path / "run", validation__metric="bits_per_byte")
    (data / "preprocess.json").unlink()
    trainer(str(data), tmp_path / "run", validation__metric="bits_per_token")
    with pytest.raises(UserError, match=r"preprocess\.json(.|\n)*bits_per_token, loss, nll, ppl") as raised:
        trainer(str(data), tmp_path / "run", validation__metric="bits_per_byte")
    assert str(raised.value).count("\n") == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task.tokens_per_sample": 0}, "task.tokens_per_sample=0"),
        ({"model.max_length": 8}, "Set model.max_length to"),
        ({"attention": {"kind": "synthesizer_dense", "max_length": 8}}, "Set attention.max_length to"),
        ({"model": "transformer"}, "model=transformer does not"),
        ({"task.break_mode": "lines"}, "task.break_mode"),
    ],
)
def test_invalid_settings_are_refused_in_three_lines(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        trainer(f"{corpus}/bin0", tmp_path / "run", **changes)
    assert words in str(caught.value)
    assert str(caught.value).count("\n") < 3


def test_parallel_or_missing_data_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains pairs of en and de"):
        LanguageModelingTask(LanguageModelingConfig(data=str(tiny_corpus)))
    with pytest.raises(UserError, match="seqtk-preprocess tokens=bytes"):
        LanguageModelingTask(
            LanguageModelingConfig(data=str(tmp_path / "none"), made_by="seqtk-preprocess tokens=bytes")
        )


def test_ptb_token_counts_equal_the_published_counts(real_data: Path, tmp_path: Path) -> None:
    """Valid and test have 73,760 and 82,430 tokens. Perplexity per token then equals perplexity per word."""
    ptb = real_data / "ptb"
    config = PreprocessConfig(
        tokens="words",
        train=f"{ptb}/ptb.valid.txt",
        valid=(f"{ptb}/ptb.valid.txt",),
        test=(f"{ptb}/ptb.test.txt",),
        destdir=f"{tmp_path}/ptb",
        workers=1,
    )
    preprocess(config)
    task = LanguageModelingTask(LanguageModelingConfig(data=f"{tmp_path}/ptb"))
    for split, tokens in (("valid", 73_760), ("test", 82_430)):
        assert int(task.dataset(split).sizes_ND.sum()) == tokens
        assert values(task, split, nll=5.0 * tokens, targets=tokens)["word_ppl"] == pytest.approx(math.exp(5.0))


def test_wikitext_token_counts_equal_the_published_counts(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "wikitext"
    splits = {name: f"{folder}/wikitext103.{name}.tokens" for name in ("valid", "test")}
    preprocess(
        PreprocessConfig(
            tokens="words",
            train=splits["valid"],
            valid=(splits["valid"],),
            test=(splits["test"],),
            destdir=f"{tmp_path}/wikitext",
            workers=1,
        )
    )
    task = LanguageModelingTask(LanguageModelingConfig(data=f"{tmp_path}/wikitext"))
    assert [int(task.dataset(split).sizes_ND.sum()) for split in ("valid", "test")] == [217_646, 245_569]


def test_translation_of_monolingual_text_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match="monolingual text"):
        TranslationTask(TranslationConfig(data=f"{corpus}/bin0"))
