"""The Python API: `seqtk.load`, `seqtk.train`, and the pipelines and runs that they return."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import seqtk
from seqtk.checkpoint import model_file
from seqtk.cli.evaluate import main as evaluate
from seqtk.cli.generate import main as generate
from seqtk.generation.search import SearchConfig
from seqtk.utils.errors import UserError
from tests.unit.cli.test_eval_lm import make
from tests.unit.training.helpers import TINY, process_state

ROOT = Path(seqtk.__file__).parent.parent
SENTENCES = ["w1 w2 w3", "w4", "w5 w6"]


def tiny(corpus: Path, save_dir: Path) -> dict[str, object]:
    return {**TINY, "task": {"data": str(corpus)}, "save_dir": str(save_dir)}


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> seqtk.Run:
    return seqtk.train(**tiny(tiny_corpus, tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language-models")
    make(folder, "words")
    return folder


class TestImport:
    def test_import_loads_neither_torch_nor_hydra(self) -> None:
        code = "import seqtk, sys; print({'torch', 'numpy', 'hydra'} & set(sys.modules))"
        printed = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout
        assert printed == "set()\n"

    def test_every_name_in_all_exists(self) -> None:
        assert all(hasattr(seqtk, name) for name in seqtk.__all__)
        with pytest.raises(AttributeError, match="nothing"):
            _ = seqtk.nothing  # type: ignore[attr-defined]


class TestLoad:
    @pytest.mark.parametrize("key", ["device", "precision"])
    def test_unknown_device_and_precision_are_refused(self, key: str) -> None:
        with pytest.raises(UserError, match=f"{key}=fp16: must be one of"):
            seqtk.load("best.safetensors", **{key: "fp16"})


class TestTrain:
    def test_train_returns_the_finished_run(self, run: seqtk.Run) -> None:
        assert run.stopped_by == 0
        assert [line["update"] for line in run.log("train")] == list(range(1, 9))
        assert run.load().info == model_file.read(run.save_dir).info

    def test_train_and_load_restore_the_process_state(self, tiny_corpus: Path, tmp_path: Path) -> None:
        before, config = process_state(), tiny(tiny_corpus, tmp_path) | {"max_updates": 1, "validation.split": None}
        config |= {"threads": 2, "deterministic": True, "log.tensorboard": True}
        model = seqtk.train(**config).load()
        model.translate(SENTENCES, sampling=True, max_length_b=3)
        assert process_state() == before
        with pytest.raises(UserError, match="max_updates"):
            seqtk.train(**config | {"seed": 5, "task.data": "missing", "max_updates": 0})
        assert process_state() == before

    def test_train_checks_overrides_and_recipe(self) -> None:
        with pytest.raises(UserError, match="max_updats"):
            seqtk.train("demo", max_updats=3)
        with pytest.raises(UserError, match=r"validation\.every"):
            seqtk.train("demo", validation={"every": -1})
        with pytest.raises(UserError, match="nothing"):
            seqtk.train("nothing")

    @pytest.mark.parametrize(("key", "value"), [("dry_run", True), ("replay", "replay.safetensors")])
    def test_train_refuses_dry_run_and_replay(self, key: str, value: object, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=rf"{key}\.\n.*seqtk-train"):
            seqtk.train(**tiny(tiny_corpus, tmp_path), **{key: value})
        assert not [*tmp_path.iterdir()]

    def test_recipe_and_overrides_are_combined(self) -> None:
        from seqtk.api import train_config

        config = train_config("multi30k_synth", attention="softmax", max_updates=7, **{"optimizer.lr": 0.5})
        assert config.save_dir == "checkpoints/multi30k_synth"
        assert (config.max_updates, config.optimizer.lr) == (7, 0.5)
        assert train_config(config, seed=3).seed == 3


class TestTranslate:
    def test_translate_equals_seqtk_generate(
        self, run: seqtk.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = seqtk.load(run.save_dir, device="cpu")
        assert isinstance(model, seqtk.TranslationPipeline)
        (tmp_path / "input").write_text("".join(f"{line}\n" for line in SENTENCES))
        generate([f"checkpoint={run.save_dir}", f"input={tmp_path / 'input'}", "beam=3", "device=cpu"])
        assert model.translate(SENTENCES, beam=3) == capsys.readouterr().out.splitlines()

    def test_nbest_outputs_are_grouped_by_input(self, run: seqtk.Run) -> None:
        model = run.load()
        assert model.translate(SENTENCES, beam=2, nbest=2)[::2] == model.translate(SENTENCES, beam=2)

    def test_translations_start_with_their_prefixes(self, run: seqtk.Run) -> None:
        model = run.load()
        assert isinstance(model, seqtk.TranslationPipeline)
        assert all(text.startswith("zebra") for text in model.translate(SENTENCES, prefixes=["zebra"] * 3))
        with pytest.warns(UserWarning, match="Prefixes"):
            model.translate(["w1"], prefixes=["w1 w2 w3"], max_length_b=1)
        with pytest.raises(UserError, match="number of prefixes is 2"):
            model.translate(SENTENCES, prefixes=["a", "b"])

    def test_translate_checks_its_arguments(self, run: seqtk.Run) -> None:
        for settings, word in (({"beem": 2}, "beem"), ({"beam": 0}, "beam"), ({"beam": 10**6}, "beam")):
            with pytest.raises(UserError, match=word):
                run.load().translate(SENTENCES, **settings)
        with pytest.raises(TypeError, match="list"):
            run.load().translate("one sentence")
        with pytest.raises(TypeError, match="list of strings"):
            run.load().translate(["w1", None])  # type: ignore[list-item]

    def test_score_equals_the_score_found_by_search(self, run: seqtk.Run) -> None:
        model = run.load()
        assert isinstance(model, seqtk.TranslationPipeline)
        texts = model.translate(SENTENCES, beam=1)
        for line, text, score in zip(SENTENCES, texts, model.score(SENTENCES, texts), strict=True):
            (found,) = model.decode([model.sentence(line, prefix=text)], model.search_config(beam=1, max_length_b=30))
            wanted = found.hypotheses[0]
            if wanted.tokens == tuple(model.sentence(line, references=[text]).target.tolist()):  # type: ignore[union-attr]
                assert score == pytest.approx(wanted.score, abs=1e-5)


class TestEvaluate:
    def test_evaluate_equals_seqtk_evaluate(self, run: seqtk.Run, capsys: pytest.CaptureFixture[str]) -> None:
        report = run.load().evaluate(split="valid", decode=False)
        evaluate([f"checkpoint={run.save_dir}", "split=valid", "decode=false"])
        assert capsys.readouterr().out.splitlines() == report.lines()
        assert report.scores["loss"].value == pytest.approx(run.load().info["loss"], rel=1e-5)

    def test_report_is_displayed_without_the_outputs(self, run: seqtk.Run) -> None:
        report = run.load().evaluate(split="valid", search=SearchConfig(beam=1, max_length_b=5))
        assert report.outputs
        assert "bleu" in repr(report)
        assert report.outputs[0].source not in repr(report)

    def test_evaluating_an_ensemble_is_refused(self, run: seqtk.Run) -> None:
        with pytest.raises(UserError, match="several models"):
            seqtk.load([run.save_dir, run.save_dir]).evaluate()


class TestGenerate:
    def test_texts_begin_with_their_prompts(self, language_models: Path) -> None:
        model = seqtk.load(language_models / "words.safetensors")
        assert isinstance(model, seqtk.GenerationPipeline)
        texts = model.generate(["a tree", "zebra sees"], nbest=3, max_length_b=4, seed=2)
        assert [text.startswith("a tree") for text in texts] == [True] * 3 + [False] * 3
        assert all(text.startswith("zebra sees") for text in texts[3:])
        assert model.generate(max_length_b=4) == model.generate([""], max_length_b=4)

    def test_prompts_may_be_an_iterator(self, language_models: Path) -> None:
        model = seqtk.load(language_models / "words.safetensors")
        prompts = ["a tree", "zebra sees"]
        assert model.generate(iter(prompts), max_length_b=4) == model.generate(prompts, max_length_b=4)

    def test_score_equals_the_corpus_score(self, language_models: Path, tmp_path: Path) -> None:
        model = seqtk.load(language_models / "words.safetensors")
        assert isinstance(model, seqtk.GenerationPipeline)
        (tmp_path / "text").write_text("a tree sees\n")
        corpus = model.score_corpus(input=str(tmp_path / "text"))
        assert model.score(["a tree sees"]) == pytest.approx([-corpus.nll / corpus.scored_tokens], rel=1e-5)

    def test_method_of_a_different_task_is_refused(self, language_models: Path) -> None:
        with pytest.raises(UserError, match=r"translate\(\).*language_modeling"):
            seqtk.load(language_models / "words.safetensors").translate(SENTENCES)


class TestShadowing:
    """A clone is a folder named seqtk. Scripts in its parent folder must import the package inside the clone."""

    def test_editable_install_is_importable_next_to_the_clone(self, tmp_path: Path) -> None:
        pytest.importorskip("setuptools", minversion="77")
        clone, site = tmp_path / "seqtk", tmp_path / "site-packages"
        shutil.copytree(ROOT / "seqtk", clone / "seqtk", ignore=shutil.ignore_patterns("[a-z]*"))
        (clone / "seqtk" / "__init__.py").write_text((ROOT / "seqtk" / "__init__.py").read_text())
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, clone)
        build = "from setuptools.build_meta import build_editable; print(build_editable(r'..'))"
        wheel = subprocess.run([sys.executable, "-c", build], cwd=clone, text=True, capture_output=True, check=True)
        with zipfile.ZipFile(tmp_path / wheel.stdout.splitlines()[-1]) as archive:
            archive.extractall(site)
        script = f"import site; site.addsitedir({str(site)!r}); import seqtk; print(seqtk.__file__)"
        environment = {"PATH": "/usr/bin:/bin"}
        ran = subprocess.run(
            [sys.executable, "-S", "-c", script], cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert ran.stdout == f"{clone / 'seqtk' / '__init__.py'}\n", ran.stderr
