"""The commands from raw text to scores lose no line, and all commands report the same score."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sacrebleu import BLEU

from seqtk.cli import average, generate, preprocess, score
from seqtk.corpora.demo import write_corpus

pytestmark = pytest.mark.slow

SEARCH = {"beam": 3, "length_penalty": 0.6, "max_length_b": 30}
LINES = {"valid": 41, "test": 23}


@dataclass(frozen=True)
class Output:
    """The output of a command."""

    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.split("\n")[:-1]

    def score(self, metric: str) -> str:
        """Returns the line that contains a score."""
        return next(line for line in [*self.lines, *self.err.splitlines()] if line.startswith(f"{metric}|"))


def call(main: Callable[[list[str]], None], *arguments: str) -> Output:
    """Runs a command in this process, and returns its output."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main([*arguments])
    out.flush()
    return Output(out.buffer.getvalue().decode("utf-8"), err.getvalue())


def shell(command: str, folder: Path) -> list[str]:
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


@dataclass(frozen=True)
class Run:
    """A folder with a trained model, its text and its data: run/, text/, data-bin/."""

    folder: Path

    def generate(self, *arguments: str, checkpoint: str | None = None) -> Output:
        name = checkpoint or f"run/{(self.folder / 'run' / 'latest').read_text()}"
        search = [f"{key}={value}" for key, value in SEARCH.items()]
        return call(generate.main, f"checkpoint={self.folder / name}", "device=cpu", *search, *arguments)

    def text(self, split: str, lang: str) -> list[str]:
        return (self.folder / "text" / f"{split}.{lang}").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pipeline")
    write_corpus(folder / "text", train=800, **LINES)
    printed = call(
        preprocess.main,
        "source_lang=en",
        "target_lang=de",
        f"train={folder}/text/train",
        f"valid=[{folder}/text/valid]",
        f"test=[{folder}/text/test]",
        f"destdir={folder}/data-bin",
        "vocab_size=400",
        "workers=1",
    )
    assert "wrote" in printed.out
    search = [f"validation.search.{key}={value}" for key, value in SEARCH.items()]
    train = [
        *(f"task.data={folder}/data-bin", f"save_dir={folder}/run", "device=cpu", "threads=1", "max_updates=240"),
        *("model.dim=64", "model.ffn_dim=128", "model.heads=4", "model.encoder.layers=1", "model.decoder.layers=1"),
        *("attention=synthesizer_mixture", "attention.max_length=80", "batch.max_tokens=1000"),
        *("optimizer.lr=0.01", "schedule.warmup_updates=60", "log.every=80", "checkpoint.every=80"),
        *("validation.every=240", "validation.decode=true", "validation.metric=bleu", *search),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "seqtk.cli.train", *train],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Run(folder)


@pytest.fixture(scope="module")
def valid(run: Run) -> Output:
    """Returns the output of translating the validation split."""
    return run.generate("split=valid")


def test_training_writes_all_logs(run: Run) -> None:
    lines = [json.loads(line) for line in (run.folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["update"]) for line in lines] == [
        *(("train", 80), ("train", 160), ("train", 240), ("valid", 240))
    ]
    assert lines[2]["loss"] < lines[0]["loss"]
    assert list((run.folder / "run" / "tensorboard").iterdir())


def test_all_commands_report_the_bleu_of_sacrebleu(run: Run, valid: Output) -> None:
    *_, last = map(json.loads, (run.folder / "run" / "log.jsonl").read_text().splitlines())
    references = run.text("valid", "de")
    bleu = BLEU(force=True)
    assert bleu.corpus_score(valid.lines, [references]).score == last["bleu"] > 1
    assert str(bleu.get_signature()) == last["bleu_signature"]

    output, reference = run.folder / "valid.out", run.folder / "text" / "valid.de"
    output.write_text(valid.out, encoding="utf-8")
    scored = call(score.main, f"hypothesis={output}", f"reference={reference}")
    command = [sys.executable, "-m", "sacrebleu", str(reference), "-i", str(output), "-f", "text", "-w", "2"]
    theirs = [
        subprocess.run([*command, "-m", metric, "--force"], capture_output=True, text=True, check=True).stdout.strip()
        for metric in ("bleu", "chrf")
    ]
    for metric, line in zip(("BLEU", "chrF2"), theirs, strict=True):
        assert valid.score(metric) == scored.score(metric) == line
    assert f" = {last['bleu']:.2f} " in theirs[0]


def test_batch_size_does_not_change_translations(run: Run, valid: Output) -> None:
    assert len(valid.lines) == LINES["valid"]
    assert len(set(valid.lines)) > LINES["valid"] // 2  # so the order can be checked
    for sentences in (1, 7, 64):
        for split in LINES:
            again = run.generate(f"split={split}", f"max_sentences={sentences}", "buffer_size=20")
            assert len(again.lines) == LINES[split]
            if split == "valid":
                assert again.lines == valid.lines


def test_text_file_and_its_split_have_equal_translations(run: Run, valid: Output) -> None:
    text = run.folder / "text"
    from_text = run.generate(f"input={text}/valid.en", f"reference={text}/valid.de")
    assert from_text.lines == valid.lines
    assert from_text.score("BLEU") == valid.score("BLEU")


def test_blank_and_unusual_lines_give_one_output_line_each(run: Run) -> None:
    given = ["", run.text("test", "en")[0], "   ", "\u2028 \x1f ☃ \t", "", "a" * 300, ""]
    path = run.folder / "strange.en"
    path.write_text("".join(f"{line}\n" for line in given), encoding="utf-8")
    lines = run.generate(f"input={path}").lines
    assert len(lines) == len(given)
    assert [bool(line) for line in lines][:3] == [False, True, False]
    assert lines[1] == run.generate("split=test").lines[0]


def test_fairseq_format_can_be_parsed_by_shell_tools(run: Run, valid: Output) -> None:
    printed = run.generate("split=valid", "format=fairseq", "max_sentences=7")
    path = run.folder / "generate.out"
    path.write_text(printed.out, encoding="utf-8")
    assert shell("grep ^D generate.out | sort -V | cut -f3", run.folder) == valid.lines
    assert shell("grep ^D generate.out | LC_ALL=C sort -V | cut -f3", run.folder) == valid.lines
    assert shell("grep ^S generate.out | sort -V | cut -f2-", run.folder) == run.text("valid", "en")
    assert shell("grep ^T generate.out | sort -V | cut -f2-", run.folder) == run.text("valid", "de")
    hypotheses = shell("grep ^H generate.out | cut -f3-", run.folder)
    assert [line.replace(" ", "").replace("▁", " ").strip() for line in hypotheses] == valid.lines
    final = printed.lines[-1]
    _, _, figures = valid.score("BLEU").partition(" = ")
    assert final.startswith("Generate valid with beam=3: BLEU")
    assert figures in final


def test_json_and_text_format_have_equal_translations(run: Run, valid: Output) -> None:
    items: list[dict[str, Any]] = [json.loads(line) for line in run.generate("split=valid", "format=json").lines]
    assert [item["index"] for item in items] == list(range(LINES["valid"]))
    assert [item["reference"] for item in items] == run.text("valid", "de")
    assert [item["hypotheses"][0]["text"] for item in items] == valid.lines
    alone = [json.loads(line) for line in run.generate("split=valid", "format=json", "max_sentences=1").lines]
    for one, other in zip(items, alone, strict=True):
        assert one["hypotheses"][0]["score"] == pytest.approx(other["hypotheses"][0]["score"], abs=1e-5)
        assert one["hypotheses"][0]["tokens"] == other["hypotheses"][0]["tokens"]


def test_averaged_model_translates_and_is_scored(run: Run, valid: Output) -> None:
    printed = call(average.main, f"checkpoint={run.folder / 'run'}", "last=3")
    assert "Mean of 3 checkpoints: update_00000080, update_00000160, update_00000240" in printed.out
    averaged = run.generate("split=valid", checkpoint="run/average.safetensors")
    assert len(averaged.lines) == LINES["valid"]
    for name, lines in (("one", valid.lines), ("two", averaged.lines)):
        (run.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    compared = call(
        score.main,
        f"hypothesis={run.folder}/one,{run.folder}/two",
        f"reference={run.folder}/text/valid.de",
        "metrics=bleu",
        "bootstrap=50",
    )
    assert "baseline" in compared.lines[1]
    assert "p = " in compared.lines[2]


def test_model_file_translates_without_its_corpus(run: Run, valid: Output, tmp_path: Path) -> None:
    """A new process translates its standard input with only the model file, without the corpus and the run."""
    best = tmp_path / "model.safetensors"
    best.write_bytes((run.folder / "run" / "best.safetensors").read_bytes())
    search = [f"{key}={value}" for key, value in SEARCH.items()]
    done = subprocess.run(
        [sys.executable, "-m", "seqtk.cli.generate", f"checkpoint={best}", "input=-", "device=cpu", *search],
        cwd=tmp_path, input="\n".join(run.text("valid", "en")), capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C"},
    )  # fmt: skip
    assert done.stdout == valid.out
