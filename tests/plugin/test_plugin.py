"""A plug-in adds a class to each registry of seqtk, in one file, for use from the command line."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin.conftest import PLUGIN, command, logged

Train = Callable[..., Path]
DECODER = ("model.decoder.layers=1", "validation.search.max_length_b=8")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that begin with `who` or `where`, with their classes."""
    folder = tmp_path_factory.mktemp("questions")
    lines = [
        f"{label} {word} is {name}" for name in "abcdef" for label, word in (("person", "who"), ("place", "where"))
    ]
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def pairs(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo language as tab-separated files."""
    folder = tmp_path_factory.mktemp("pairs")
    for split in ("train", "valid", "test"):
        sides = [(tiny_corpus / "text" / f"{split}.{lang}").read_text().splitlines() for lang in ("en", "de")]
        (folder / f"{split}.tsv").write_text(
            "".join(f"{source}\t{target}\n" for source, target in zip(*sides, strict=True))
        )
    return folder


@pytest.fixture(scope="module")
def questions_run(train: Train, questions: Path) -> Path:
    return train(
        *("task=questions", "model=transformer_classifier", f"task.data={questions}", "task.pool=max"),
        *("max_updates=40", "validation.every=20", "validation.decode=true", "validation.metric=f1"),
    )


@pytest.fixture(scope="module")
def pairs_run(train: Train, pairs: Path) -> Path:
    source = ("task=translation", "task.source=tsv_pairs", "task.source.lowercase=true", f"task.data={pairs}")
    return train(*source, *DECODER, "model.share_embeddings=decoder")


@pytest.fixture(scope="module")
def arguments(tiny_corpus: Path) -> tuple[str, ...]:
    return (
        *(f"task.data={tiny_corpus}", *DECODER, "criterion=flooding", "criterion.level=2"),
        *("optimizer=lookahead", "optimizer.inner=adamw", "optimizer.steps=2", "optimizer.alpha=0.8"),
        *("schedule=sawtooth", "schedule.warmup_updates=0", "schedule.period=3"),
        *("model.decoder.self_attention=retention", "validation.metric=share_below"),
    )


@pytest.mark.slow
class TestTask:
    """A task of a plug-in, with a source, a head and metrics."""

    def test_task_learns_to_classify_questions(self, questions_run: Path) -> None:
        last = logged(questions_run, "valid")[-1]
        assert last["accuracy"] == last["f1"] == last["best_f1"] == 100

    def test_task_is_evaluated_on_a_split(self, questions_run: Path) -> None:
        report = json.loads(command("evaluate", str(questions_run), "format=json", "device=cpu"))
        assert (report["accuracy"], report["f1"], report["examples"]) == (100, 100, 12)

    def test_task_is_evaluated_on_a_file(self, questions_run: Path, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("who is g\nwhere is g\n")
        (tmp_path / "labels").write_text("person\nperson\n")
        files = (f"input={tmp_path}/text", f"reference={tmp_path}/labels")
        printed = command("evaluate", str(questions_run), *files, "device=cpu", "metrics=[accuracy]")
        assert "50 accuracy (%)" in printed

    def test_file_without_references_is_refused(self, questions_run: Path, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("who is g\n")
        with pytest.raises(AssertionError, match=r"reference=FILE"):
            command("evaluate", str(questions_run), f"input={tmp_path}/text", "device=cpu")

    def test_long_questions_are_refused(self, train: Train, questions: Path) -> None:
        limit = (
            "task=questions",
            "model=transformer_classifier",
            f"task.data={questions}",
            "model.max_source_length=2",
        )
        with pytest.raises(AssertionError, match=r"model\.max_source_length"):
            train(*limit)


@pytest.mark.slow
class TestSource:
    """A data source of a plug-in."""

    def test_seqtk_generate_reads_the_source(self, pairs_run: Path, pairs: Path) -> None:
        printed = command("generate", f"checkpoint={pairs_run}", "beam=1", "max_length_b=8", "device=cpu")
        assert printed.count("\n") == (pairs / "test.tsv").read_text().count("\n")

    def test_seqtk_evaluate_reads_the_source(self, pairs_run: Path, pairs: Path) -> None:
        options = ("beam=1", "max_length_b=8", "device=cpu", "format=json")
        report = json.loads(command("evaluate", str(pairs_run), f"data={pairs}", "split=valid", *options))
        assert report["nll"] == pytest.approx(logged(pairs_run, "valid")[-1]["nll"], rel=1e-4)


@pytest.mark.slow
class TestMetric:
    """A metric of a plug-in. Its direction determines the best model."""

    def test_best_model_has_the_highest_score(self, train: Train, tiny_corpus: Path) -> None:
        run = train(
            *(f"task.data={tiny_corpus}", *DECODER, "max_updates=30", "validation.every=6"),
            *("validation.decode=true", "validation.metric=token_f1"),
        )
        values = [line["token_f1"] for line in logged(run, "valid")]
        assert len(set(values)) > 1
        assert logged(run, "valid")[-1]["best_token_f1"] == max(values)
        options = ("split=valid", "max_length_b=8", "device=cpu", "metrics=[token_f1]", "format=json")
        assert json.loads(command("evaluate", str(run), *options))["token_f1"] == pytest.approx(max(values))


class TestTraining:
    """A criterion, an optimizer, a schedule and an attention layer of a plug-in."""

    def test_run_uses_every_component_of_the_plugin(self, train: Train, arguments: tuple[str, ...]) -> None:
        run = train(*arguments)
        lines = logged(run, "train")
        assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.02 / 3, 0.01 / 3, 0.01])
        assert {line["share_below"] for line in lines} == {0}
        assert all(line["loss"] == pytest.approx(line["nll"]) for line in lines)

    @pytest.mark.slow
    def test_resuming_with_plugin_components_is_bit_exact(
        self, train: Train, arguments: tuple[str, ...], tmp_path: Path
    ) -> None:
        whole = train(*arguments)
        parts = train(*arguments, "max_updates=3", folder=tmp_path)
        train(*arguments, folder=parts)
        losses = [[line["loss"] for line in logged(run, "train")] for run in (whole, parts)]
        assert losses[0] == losses[1]


@pytest.mark.slow
class TestModel:
    """A language model of a plug-in."""

    @pytest.mark.parametrize("attention", ["retention", "transformer_xl"])
    def test_model_trains_in_streams_and_generates(self, tiny_corpus: Path, tmp_path: Path, attention: str) -> None:
        text = tiny_corpus / "text"
        settings = (f"train={text}/train.en", f"valid={text}/valid.en", "tokens=characters", f"destdir={tmp_path}/data")
        subprocess.run([sys.executable, "-m", "seqtk.cli.preprocess", *settings], check=True, capture_output=True)
        command(
            *("train", "task=language_modeling", f"task.data={tmp_path}/data", "task.tokens_per_sample=16"),
            *("model=looped_lm", "model.dim=16", "model.loops=2", f"attention={attention}", "attention.heads=2"),
            *("batch.streams=4", "max_updates=4", "validation.every=2", "log.tensorboard=false", "device=cpu"),
            *("threads=1", f"save_dir={tmp_path}/run"),
        )
        generated = command("generate", f"checkpoint={tmp_path}/run", "max_length_b=8", "min_length=8", "device=cpu")
        assert len(generated.rstrip("\n")) >= 8


@pytest.mark.slow
class TestSink:
    """A log sink of a plug-in."""

    def test_csv_log_equals_json_log_after_resuming(self, train: Train, tiny_corpus: Path) -> None:
        arguments = (f"task.data={tiny_corpus}", *DECODER, "log.sinks=[jsonl,csv]")
        run = train(*arguments, "max_updates=3")
        train(*arguments, folder=run)
        rows = list(csv.reader((run / "log.csv").read_text().splitlines()))
        found = [(int(update), float(value)) for kind, update, name, value in rows if (kind, name) == ("train", "nll")]
        assert found == [(line["update"], pytest.approx(line["nll"])) for line in logged(run, "train")]


@pytest.mark.slow
class TestInterop:
    """An exporter and an importer of a plug-in."""

    def test_exported_model_is_imported_unchanged(self, train: Train, tiny_corpus: Path, tmp_path: Path) -> None:
        run = train(f"task.data={tiny_corpus}", *DECODER)
        archive, model = tmp_path / "model.npz", tmp_path / "model.safetensors"
        command("export", f"checkpoint={run}", "format=numpy_archive", f"output={archive}")
        command("import_model", f"checkpoint={archive}", "format=numpy_archive", f"output={model}")
        options = ("beam=2", "max_length_b=8", "device=cpu")
        once, again = (command("generate", f"checkpoint={path}", *options) for path in (run, model))
        assert once == again


@pytest.mark.slow
class TestEngine:
    """A parallel engine of a plug-in."""

    def test_losses_of_the_engine_equal_ddp(self, train: Train, tiny_corpus: Path) -> None:
        arguments = (f"task.data={tiny_corpus}", *DECODER, "model.dropout=0")
        losses = []
        for engine in ("flat", "ddp"):
            run = train(*arguments, f"parallel={engine}", processes=2)
            losses.append([line["loss"] for line in logged(run, "train")])
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class TestLayer:
    """The attention layer of the plug-in, checked with the laws of seqtk."""

    @pytest.mark.slow
    def test_plugin_layer_obeys_the_laws(self) -> None:
        code = (
            f"from seqtk.config.registry import load_plugins; load_plugins({str(PLUGIN)!r})\n"
            "from seqtk.testing.laws import run_laws\n"
            "from retlab.retention import naive\n"
            "import torch; torch.set_num_threads(1)\n"
            "run_laws('retention', oracle=naive)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
