"""seqtk-evaluate reports the same metrics as validation, seqtk-generate and seqtk-eval-lm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqtk.cli.eval_lm import main as eval_lm
from seqtk.cli.evaluate import main
from seqtk.cli.generate import main as generate
from seqtk.cli.train import main as train

TINY = (
    "model.dim=16 model.ffn_dim=32 model.heads=2 model.encoder.layers=1 model.decoder.layers=1 device=cpu "
    "max_updates=4 batch.max_tokens=400 validation.every=4 validation.split=test validation.decode=true "
    "validation.metric=bleu validation.search.max_length_b=5 log.tensorboard=false"
)
TINY_LM = (
    "task=language_modeling model=transformer_lm model.dim=16 model.ffn_dim=32 model.heads=2 model.layers=1 device=cpu "
    "max_updates=4 batch.max_tokens=400 validation.every=4 criterion=cross_entropy log.tensorboard=false"
)
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def translation(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translation")
    train([*TINY.split(), f"task.data={tiny_corpus}", f"save_dir={folder}"])
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        main([*arguments, "format=json", "device=cpu"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


class TestTranslation:
    def test_metrics_equal_validation_metrics(self, run: Run, translation: Path) -> None:
        lines = map(json.loads, (translation / "log.jsonl").read_text().splitlines())
        valid = [line for line in lines if line["kind"] == "valid"][-1]
        found = run(str(translation / "update_00000004"), "max_length_b=5")
        for name in ("loss", "nll", "ppl", "bleu", "chrf", "bleu_signature"):
            assert found[name] == (valid[name] if name.endswith("signature") else pytest.approx(valid[name], rel=1e-6))

    def test_text_files_and_their_split_have_equal_metrics(
        self, run: Run, translation: Path, tiny_corpus: Path
    ) -> None:
        text = tiny_corpus / "text"
        options = ("max_length_b=5", "beam=1")
        split = run(str(translation), *options)
        file = run(str(translation), f"input={text}/test.en", f"reference={text}/test.de", *options)
        assert file == pytest.approx(split)
        twice = run(str(translation), f"input={text}/test.en", f"reference={text}/test.de,{text}/test.de", *options)
        assert "nrefs:2" in twice["bleu_signature"]

    def test_metrics_setting_selects_the_metrics(self, run: Run, translation: Path) -> None:
        found = run(str(translation), "metrics=[ter,nll]", "beam=1", "max_length_b=5")
        assert {"ter", "nll"} <= found.keys()
        assert "bleu" not in found

    def test_printed_report_names_units(self, translation: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main([str(translation), "decode=false", "device=cpu"])
        printed = capsys.readouterr().out
        assert "nll (nats per target)" in printed
        assert "targets" in printed

    @pytest.mark.parametrize(
        ("arguments", "key"),
        [
            (["metrics=[bleu]", "decode=false"], "metrics=bleu"),
            (["metrics=[blue]"], "blue"),
            (["input=x", "data=y"], "input="),
            (["reference=x"], "reference="),
            (["split=tset"], "tset"),
            (["search.beam=2"], "'beam'"),
        ],
    )
    def test_error_names_the_key(
        self, translation: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], key: str
    ) -> None:
        with pytest.raises(SystemExit) as raised:
            main([str(translation), "device=cpu", *arguments])
        assert raised.value.code == 2
        assert key in capsys.readouterr().err

    def test_input_without_references_is_refused(
        self, translation: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main([str(translation), "device=cpu", f"input={tiny_corpus}/text/test.en"])
        assert "reference=" in capsys.readouterr().err


class TestLanguageModeling:
    def test_metrics_equal_seqtk_eval_lm(
        self, run: Run, tmp_path: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from seqtk.data.preprocess import PreprocessConfig, preprocess

        text = tiny_corpus / "text" / "test.en"
        splits = {"train": str(text), "valid": (str(text),), "test": (str(text),)}
        preprocess(PreprocessConfig(tokens="words", destdir=str(tmp_path / "bin"), workers=1, **splits))
        train([*TINY_LM.split(), f"task.data={tmp_path}/bin", f"save_dir={tmp_path}/run"])
        for arguments in ([], [f"input={text}"]):
            found = run(f"{tmp_path}/run", *arguments)
            eval_lm([f"checkpoint={tmp_path}/run", *arguments, "format=json", "device=cpu"])
            wanted = json.loads(capsys.readouterr().out)
            for name in ("nll", "ppl", "word_ppl", "bits_per_byte", "bits_per_character"):
                assert found[name] == pytest.approx(wanted[name], rel=1e-6)


def test_bleu_equals_seqtk_generate(
    run: Run, translation: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(str(translation), "max_length_b=5")
    options = [f"checkpoint={translation}", f"data={tiny_corpus}", "max_length_b=5", "device=cpu", "output=/dev/null"]
    generate(options)
    assert f"BLEU|{found['bleu_signature']} = {found['bleu']:.2f}" in capsys.readouterr().err
