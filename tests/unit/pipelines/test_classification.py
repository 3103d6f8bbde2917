"""Classification with the Python API and the commands, without the training data."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seqtk
from seqtk.cli import classify as classify_command
from seqtk.cli import evaluate as evaluate_command
from seqtk.cli import interactive as interactive_command
from seqtk.data.plan import BatchingConfig
from seqtk.pipelines import ClassificationPipeline, load
from seqtk.utils.errors import UserError
from tests.unit.tasks.labelled import write_pairs, write_texts
from tests.unit.tasks.trained import trainer

TEXTS = ["w1 k0 w2", "k1", "w3 w4 w5 k0 w1 w2 k1 w0", "", "never seen k1 before"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained classifier whose data folder has been moved."""
    folder = write_texts(tmp_path_factory.mktemp("texts"), longest=10)
    save_dir = tmp_path_factory.mktemp("runs") / "classifier"
    trainer(folder, save_dir, model__max_source_length=10, max_updates=100, model__encoder__layers=2).fit()
    folder.rename(folder.parent / "moved")
    return save_dir


@pytest.fixture(scope="module")
def matching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pairs(tmp_path_factory.mktemp("pairs"))
    save_dir = tmp_path_factory.mktemp("runs") / "matching"
    trainer(folder, save_dir, "matching", max_updates=2, validation__every=2).fit()
    return save_dir


def loaded(path: Path) -> ClassificationPipeline:
    model = load(path, device="cpu")
    assert isinstance(model, ClassificationPipeline)
    return model


def run_command(main: Any, *arguments: str) -> None:
    main([f"{argument}" for argument in arguments] + ["device=cpu"])


class TestPython:
    def test_class_names_come_from_the_model_file(self, run: Path) -> None:
        model = seqtk.load(run, device="cpu")
        assert model.classify(TEXTS[:3]) == model.classify(iter(TEXTS[:3])) == ["yes", "no", "both"]

    def test_probabilities_do_not_depend_on_the_batch(self, run: Path) -> None:
        model = loaded(run)
        together = model.probabilities(TEXTS)
        alone = [found for text in TEXTS for found in model.probabilities([text])]
        for one, other in zip(together, alone, strict=True):
            assert sum(one.values()) == pytest.approx(1)
            assert list(one) == model.classes == ["yes", "no", "both"]
            np.testing.assert_allclose(list(one.values()), list(other.values()), atol=1e-6)

    def test_predictions_do_not_depend_on_window_and_batch(self, run: Path) -> None:
        model, texts = loaded(run), [" ".join(["w1"] * size + ["k0"]) for size in (5, 1, 7, 2, 3, 0)]
        whole = [found.probabilities["yes"] for found in model.predict(texts)]
        for window, size in ((1, 1), (2, 3), (4, 2)):
            found = model.predict(texts, window=window, batching=BatchingConfig(max_tokens=None, max_sentences=size))
            assert [each.probabilities["yes"] for each in found] == pytest.approx(whole, abs=1e-6)

    def test_input_is_read_one_window_at_a_time(self, run: Path) -> None:
        texts = iter(TEXTS)
        next(loaded(run).predict(texts, window=2))
        assert list(texts) == TEXTS[2:]

    def test_long_text_is_refused_or_truncated(self, run: Path) -> None:
        model, long = loaded(run), " ".join(["k0"] + ["w1"] * 20)
        with pytest.raises(UserError, match="truncate=true"):
            model.classify([long])
        (found,) = model.predict([long], truncate=True)
        assert found.truncated
        assert found.probabilities == pytest.approx(model.probabilities([" ".join(long.split()[:10])])[0], abs=1e-6)

    def test_ensembles_average_probabilities(self, run: Path) -> None:
        folders = sorted(run.glob("update_*"))
        paths = [run / "best.safetensors", folders[0]]
        mean = load(paths, device="cpu").probabilities(TEXTS)  # type: ignore[attr-defined]
        each = [loaded(path).probabilities(TEXTS) for path in paths]
        for found, *parts in zip(mean, *each, strict=True):
            for name in found:
                assert found[name] == pytest.approx(np.mean([part[name] for part in parts]), abs=1e-6)

    def test_nan_is_refused(self, run: Path) -> None:
        model = loaded(run)
        with torch.no_grad():
            model.models[0].head.linear.weight.fill_(torch.nan)  # type: ignore[operator, union-attr]
        with pytest.raises(UserError, match="NaN"):
            model.classify(TEXTS)
        with pytest.raises(UserError, match="NaN"):
            model.evaluate(str(next(run.parents[1].glob("moved*"))))

    def test_wrong_types_are_refused(self, run: Path, matching: Path) -> None:
        for path, texts in ((run, "a"), (run, [("a", "b")]), (matching, ["a"]), (matching, [("a",)])):
            with pytest.raises(TypeError, match="texts"):
                loaded(path).classify(texts)  # type: ignore[arg-type]

    def test_method_of_a_different_task_is_refused(self, run: Path) -> None:
        with pytest.raises(UserError, match=r"translate\(\)"):
            loaded(run).translate(["a"])


class TestClassify:
    def test_classify_prints_one_label_per_line(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
        run_command(classify_command.main, f"checkpoint={run}", f"input={tmp_path / 'in.txt'}", "max_sentences=2")
        assert capsys.readouterr().out.splitlines() == loaded(run).classify(TEXTS)

    def test_json_output_has_probabilities(
        self, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"k0\nk1 w1\n")))
        run_command(classify_command.main, f"checkpoint={run}", "format=json")
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert first["label"] == "yes"
        assert second["label"] == "no"
        assert first["probabilities"] == pytest.approx(loaded(run).probabilities(["k0"])[0], abs=1e-6)

    def test_pairs_are_separated_by_a_tab(
        self, matching: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "pairs.txt"
        path.write_text("k0 w1\tk0\nk1\tk2 w2\n")
        run_command(classify_command.main, f"checkpoint={matching}", f"input={path}")
        assert capsys.readouterr().out.splitlines() == loaded(matching).classify([("k0 w1", "k0"), ("k1", "k2 w2")])
        path.write_text("k0\tk1\nno tab\n")
        with pytest.raises(SystemExit):
            run_command(classify_command.main, f"checkpoint={matching}", f"input={path}", f"output={tmp_path / 'out'}")
        assert "Line 2" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_error_names_the_line_that_is_too_long(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "in.txt"
        path.write_text("k0\n" + " ".join(["w1"] * 30) + "\n")
        with pytest.raises(SystemExit):
            run_command(classify_command.main, f"checkpoint={run}", f"input={path}")
        assert "Line 2" in capsys.readouterr().err
        run_command(classify_command.main, f"checkpoint={run}", f"input={path}", "truncate=true")
        output = capsys.readouterr()
        assert len(output.out.splitlines()) == 2
        assert "1 line" in output.err

    def test_interactive_classifies_each_line(
        self, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"k0\nk1\n")))
        run_command(interactive_command.main, f"checkpoint={run}")
        assert capsys.readouterr().out.splitlines() == ["yes", "no"]

    @pytest.mark.parametrize("size", [1, 4])
    def test_interactive_continues_after_an_invalid_line(
        self, size: int, matching: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = [b"k0\tk1", b"no tab", b"k1\tk2", b"a\tb\tc", b"\xe9\tk1", b"k0\tk1"]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))
        run_command(interactive_command.main, f"checkpoint={matching}", f"buffer_size={size}")
        printed, errors = capsys.readouterr()
        first, third = loaded(matching).classify([("k0", "k1"), ("k1", "k2")])
        assert printed.split("\n")[:6] == [first, "", third, "", "", first]
        assert "Line 2 " in errors
        assert "Line 4 " in errors
        assert "Line 5 of standard input is not UTF-8" in errors

    @pytest.mark.parametrize("setting", ["beam=3", "nbest=1 sampling=true", "detokenize=false", "format=fairseq"])
    def test_interactive_refuses_search_settings(
        self, setting: str, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            run_command(interactive_command.main, f"checkpoint={run}", *setting.split())
        assert setting.split()[-1].partition("=")[0] in capsys.readouterr().err


class TestEvaluate:
    @pytest.fixture
    def data(self, run: Path) -> str:
        return f"data={next(run.parents[1].glob('moved*'))}"

    def test_json_report_has_intervals_and_counts(
        self, run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("matplotlib")
        picture = tmp_path / "confusion.png"
        run_command(
            evaluate_command.main, f"checkpoint={run}", data, "format=json", f"confusion={picture}", "bootstrap=200"
        )
        report = json.loads(capsys.readouterr().out)
        low, high = report["accuracy_interval"]
        assert low <= report["accuracy"] <= high
        assert report["examples"] == 60 == sum(map(sum, report["confusion"]))
        assert [each["name"] for each in report["per_class"]] == ["yes", "no", "both"]
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_text_report_has_a_table_of_classes(self, run: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
        run_command(evaluate_command.main, f"checkpoint={run}", data, "bootstrap=0")
        lines = capsys.readouterr().out.splitlines()
        assert any("accuracy (%)" in line for line in lines)
        assert not any("interval" in line for line in lines)
        assert [line.split()[0] for line in lines if line[:1].isalpha()][-4:-1] == ["yes", "no", "both"]

    def test_labelled_file_and_data_have_equal_metrics(
        self, run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = (Path(data.removeprefix("data=")) / "test.txt").read_text()
        (tmp_path / "plain.tsv").write_text(lines)
        (tmp_path / "named.tsv").write_text("class\twords\n" + lines)
        reports = []
        for arguments in (
            [data],
            [f"input={tmp_path / 'plain.tsv'}", "columns.text=2", "columns.label=1"],
            [f"input={tmp_path / 'named.tsv'}", "columns.text=words", "columns.label=class"],
        ):
            run_command(evaluate_command.main, f"checkpoint={run}", *arguments, "format=json", "bootstrap=100")
            reports.append(json.loads(capsys.readouterr().out))
        assert reports[1] == reports[2]
        for name in ("accuracy", "confusion", "examples", "per_class"):
            assert reports[1][name] == reports[0][name]
        assert reports[1]["nll"] == pytest.approx(reports[0]["nll"])

    def test_error_names_the_line_of_an_unknown_class(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "a.tsv").write_text("text\tlabel\nk0\tyes\nk1\tnope\n")
        with pytest.raises(SystemExit):
            run_command(evaluate_command.main, f"checkpoint={run}", f"input={tmp_path / 'a.tsv'}")
        assert "Line 3" in capsys.readouterr().err

    def test_pairs_are_read_by_column(self, matching: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "k0", "second": "k0 w1", "label": "same"}\n')
        run_command(evaluate_command.main, f"checkpoint={matching}", f"input={tmp_path / 'a.jsonl'}", "format=json")
        assert json.loads(capsys.readouterr().out)["examples"] == 1

    def test_long_examples_are_refused_or_truncated(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "a.tsv").write_text("text\tlabel\nk0\tyes\nk1" + " w1" * 30 + "\tno\n")
        arguments = (f"checkpoint={run}", f"input={tmp_path / 'a.tsv'}")
        with pytest.raises(SystemExit):
            run_command(evaluate_command.main, *arguments)
        error = capsys.readouterr().err
        assert "example 2" in error
        assert "truncate=true" in error
        run_command(evaluate_command.main, *arguments, "truncate=true")
        assert "1 truncated example" in capsys.readouterr().out

    @pytest.mark.parametrize("settings", ["beam=3", "split=test input=a.tsv", "columns.label=a"])
    def test_settings_without_effect_are_refused(
        self, settings: str, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            run_command(evaluate_command.main, f"checkpoint={run}", *settings.split())
        assert settings.partition("=")[0] in capsys.readouterr().err

    def test_invalid_truncate_value_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            run_command(evaluate_command.main, "checkpoint=nothing", "truncate=maybe")
        assert "truncate" in capsys.readouterr().err

    def test_invalid_confusion_path_is_refused_before_loading(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for value in ("matrix.txt", f"{tmp_path}/none/matrix.png"):
            with pytest.raises(SystemExit):
                run_command(evaluate_command.main, "checkpoint=nothing", f"confusion={value}")
            assert "confusion=" in capsys.readouterr().err
