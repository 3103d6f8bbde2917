"""seqtk-eval-lm: metrics equal validation, token scores sum to the total, and errors have at most three lines."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.attention.transformer_xl import TransformerXLConfig
from seqtk.checkpoint import model_file, trained_model
from seqtk.checkpoint.model_file import ModelFile, tensors_of
from seqtk.cli.eval_lm import main
from seqtk.config import schema
from seqtk.criterions.cross_entropy import CrossEntropy, CrossEntropyConfig
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.metrics import metrics
from seqtk.models.language_model import TransformerLMConfig
from seqtk.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from seqtk.training.config import BatchingConfig, TrainConfig, ValidationConfig
from seqtk.training.parallel import TrainStep, start_engine
from seqtk.training.validation import validate

LINES = ["the dög sees a tree", "", "a tree sees the dög and the sea", "and a sea"] * 5
KINDS: dict[str, dict[str, Any]] = {
    "bytes": {"tokens": "bytes"},
    "bytes with eos": {"tokens": "bytes", "line_end": "eos"},
    "characters": {"tokens": "characters"},
    "words": {"tokens": "words"},
    "pieces": {"tokens": "sentencepiece", "vocab_size": 40, "character_coverage": 1.0},
}

Run = Callable[..., Any]


def make(folder: Path, kind: str, *, seed: int = 1) -> None:
    """Writes a text, its data-bin and a random model `kind.safetensors` to `folder`."""
    text = folder / "text"
    text.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    destination = str(folder / kind)
    if not Path(destination).exists():
        given = (str(text),)
        preprocess(
            PreprocessConfig(train=str(text), valid=given, test=given, destdir=destination, workers=1, **KINDS[kind])
        )
    config = LanguageModelingConfig(data=destination, tokens_per_sample=16)
    task = LanguageModelingTask(config)
    model_config = TransformerLMConfig(dim=8, ffn_dim=8, heads=2, layers=1, max_length=20)
    torch.manual_seed(seed)
    model = task.model(model_config)
    train = TrainConfig(task=config, model=model_config)
    name = folder / f"{kind}{'' if seed == 1 else seed}.safetensors"
    model_file.write(name, ModelFile(tensors_of(model), schema.to_dict(train), task.assets(), {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval-lm")
    for kind in KINDS:
        make(folder, kind)
    make(folder, "words", seed=2)
    return folder


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs the command on a model and returns the printed figures."""
    monkeypatch.chdir(folder)

    def run(kind: str, *arguments: str) -> dict[str, Any]:
        main([f"checkpoint={kind}.safetensors", "device=cpu", "format=json", *arguments])
        figures: dict[str, Any] = json.loads(capsys.readouterr().out)
        return figures

    return run


def train_config(loaded: trained_model.LoadedModel) -> TrainConfig:
    return schema.from_dict(TrainConfig, loaded.config)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_equal_validation_metrics(run: Run, folder: Path, kind: str) -> None:
    loaded = trained_model.load(folder / f"{kind}.safetensors")
    objective = TrainStep(loaded.model, CrossEntropy(CrossEntropyConfig()))
    config = replace(
        train_config(loaded), validation=ValidationConfig(split="test"), batch=BatchingConfig(max_tokens=100)
    )
    wanted, _ = validate(objective, loaded.task, config, engine=start_engine(device="cpu"))
    wanted.pop("loss")
    figures = run(kind)
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert {"bits_per_byte", "bits_per_character", "word_ppl", "ppl"} <= wanted.keys()
    assert (figures["text_lines"], figures["text_words"]) == (20, 80)
    assert figures["text_bytes"] == figures["text_characters"] + 10
    assert figures["scored_tokens"] == figures["tokens"]


def test_metrics_with_memory_equal_validation_metrics(run: Run, folder: Path) -> None:
    loaded = trained_model.load(folder / "words.safetensors")
    assert isinstance(loaded.task, LanguageModelingTask)
    attention = TransformerXLConfig(memory_length=5)
    model_config = replace(train_config(loaded).model, attention=(attention,), positions="none")
    torch.manual_seed(1)
    model = loaded.task.model(model_config).eval()
    with torch.no_grad():
        model.head.weight.mul_(4)  # type: ignore[operator]
    config = replace(
        train_config(loaded),
        model=model_config,
        batch=BatchingConfig(streams=3),
        validation=ValidationConfig(split="test"),
    )
    contents = ModelFile(tensors_of(model), schema.to_dict(config), loaded.task.assets(), {})
    model_file.write(folder / "xl.safetensors", contents)
    objective = TrainStep(model, CrossEntropy(CrossEntropyConfig()))
    wanted, _ = validate(objective, loaded.task, config, engine=start_engine(device="cpu"))
    figures = run("xl", "output=scores.jsonl")
    assert figures["nll"] == pytest.approx(wanted["nll"], rel=1e-6)
    assert run("xl", "streams=1")["nll"] != pytest.approx(figures["nll"], rel=1e-4)
    assert run("xl", "context_window=4")["scored_tokens"] == figures["tokens"]


def test_streams_with_absolute_positions_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = trained_model.load(folder / "words.safetensors")
    assert isinstance(loaded.task, LanguageModelingTask)
    config = replace(
        train_config(loaded), model=replace(train_config(loaded).model, attention=(TransformerXLConfig(),))
    )
    model = loaded.task.model(config.model)
    contents = ModelFile(tensors_of(model), schema.to_dict(config), loaded.task.assets(), {})
    model_file.write(folder / "counts.safetensors", contents)
    with pytest.raises(SystemExit):
        main([f"checkpoint={folder}/counts.safetensors", "streams=8"])
    assert "model.positions=sinusoidal" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_its_data_bin_have_equal_scores(run: Run, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = run(kind, "context_window=4")
    assert run(kind, "input=text", "context_window=4") == pytest.approx(wanted)
    stdin = io.TextIOWrapper(io.BytesIO(Path("text").read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert run(kind, "input=-", "context_window=4") == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_output_file_has_the_scores_of_all_tokens(run: Run, kind: str, folder: Path) -> None:
    figures = run(kind, "output=scores.jsonl", "max_tokens=40")
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    task = trained_model.load(folder / f"{kind}.safetensors").task
    assert isinstance(task, LanguageModelingTask)
    assert [line["index"] for line in lines] == list(range(len(LINES)))
    assert [task.tokenizer.decode([token for token in line["tokens"] if token != "</s>"]) for line in lines] == [
        f"{text}\n" if kind == "bytes" else text for text in LINES
    ]
    scores = [score for line in lines for score in line["token_scores"]]
    assert len(scores) == figures["tokens"]
    assert -math.fsum(scores) == pytest.approx(figures["nll_sum"], rel=1e-6)
    assert sum(line["score"] for line in lines) == pytest.approx(sum(scores))


def test_document_separators_are_not_scored(run: Run, folder: Path) -> None:
    figures = run("words", "break_mode=complete_doc", "output=scores.jsonl")
    assert figures["tokens"] - figures["scored_tokens"] == 5
    assert "word_ppl" not in figures  # not all of the text was scored
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert lines[1] == {"index": 1, "score": 0.0, "tokens": ["</s>"], "token_scores": [None]}


def test_per_word_metrics_use_the_original_text(run: Run, folder: Path) -> None:
    (folder / "original").write_text("one two three\nfour\n")
    figures = run("words", "text=original")
    assert figures["word_ppl"] == pytest.approx(math.exp(figures["nll_sum"] / 6))
    assert figures["bits_per_byte"] == pytest.approx(figures["nll_sum"] / math.log(2) / 19)


def test_printed_report_names_metrics_and_units(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = run("words")
    main([f"checkpoint={folder}/words.safetensors", "device=cpu"])
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Scored 100 of 100 tokens (20 lines, 7 samples), each token once; unknown tokens: 0 ")
    assert "80 words" in last
    names = ("nll", "ppl", "bits_per_token", "bits_per_byte", "bits_per_character", "word_ppl")
    for name, line in zip(names, lines, strict=True):
        value, printed, unit = line.split(maxsplit=2)
        assert (printed, unit) == (name, f"({metrics[name].unit})")
        assert float(value) == pytest.approx(exact[name], rel=6e-4)


def test_missing_corpus_error_names_its_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export = model_file.read(folder / "words.safetensors")
    export.config["task"] |= {"data": "data-bin/gone", "made_by": "seqtk-prepare ptb"}
    model_file.write(Path("lm.safetensors"), export)
    for arguments, advice in (("", "seqtk-prepare ptb"), ("data=data-bin/gone", "seqtk-prepare ptb"), ("data=x", "")):
        with pytest.raises(SystemExit):
            main(["checkpoint=lm.safetensors", *arguments.split()])
        stderr = capsys.readouterr().err
        assert ("seqtk-prepare ptb" in stderr) == bool(advice)
        assert ("seqtk-preprocess" in stderr) != bool(advice)


@pytest.mark.parametrize("arguments", ["checkpoint=/nope", "data=/nope", "input=/nope", "text=/nope"])
def test_missing_path_suggests_no_unrelated_path(
    arguments: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        main(["checkpoint=words.safetensors", arguments])
    stderr = capsys.readouterr().err
    assert "/nope" in stderr
    assert not [word for word in ("nown", "tmp", "etc", "source_lang") if word in stderr]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "checkpoint="),
        ("checkpoint=words.safetensors split=tset", "Did you mean 'test'"),
        ("checkpoint=words.safetensors data=bytes", "dictionary in bytes"),
        ("checkpoint=words.safetensors,bytes.safetensors", "different vocabularies"),
        ("checkpoint=words.safetensors input=txt", "There is no text file txt"),
        ("checkpoint=words.safetensors input=text data=words", "both set"),
        ("checkpoint=words.safetensors input=text split=valid", "split=valid"),
        ("checkpoint=words.safetensors text=txt", "There is no text file txt"),
        ("checkpoint=words.safetensors context_window=16", "does not fit in tokens_per_sample=16"),
        ("checkpoint=words.safetensors tokens_per_sample=21", "tokens_per_sample=20"),
        ("checkpoint=words.safetensors tokens_per_sample=0", "tokens_per_sample=0"),
        ("checkpoint=words.safetensors output=nowhere/o", "no folder nowhere"),
        ("checkpoint=words.safetensors streams=2 context_window=3", "both set"),
        ("checkpoint=words.safetensors streams=2 break_mode=eos", "Set break_mode=none"),
        ("checkpoint=words.safetensors streams=0", "streams=0"),
        ("checkpoint=words.safetensors output=-", "Set output= to a file"),
        ("checkpoint=words.safetensors text=bytes/dict.txt output=bytes/dict.txt", "would overwrite text="),
        ("checkpoint=words.safetensors max_tokens=null max_sentences=null", "both null"),
        ("checkpoint=bytes/dict.txt", "a dictionary"),
        ("checkpoint=words.safetensors contxt_window=3", "Did you mean 'context_window'"),
        ("--path words.safetensors --context-window 3 --gen-subset valid", "checkpoint=words.safetensors"),
    ],
)
def test_error_names_the_key(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as raised:
        main(arguments.split())
    stderr = capsys.readouterr().err
    assert words in stderr
    assert raised.value.code == 2
    assert len(stderr.splitlines()) <= 3
    assert not list(folder.glob("*.partial*"))
