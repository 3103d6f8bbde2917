"""Several validation splits, runs without validation, and max_hours."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from seqtk.cli.plot import main
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, trainer


@pytest.fixture(scope="module")
def two_splits(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus with a second validation split, which is a copy of the training text."""
    folder = tmp_path_factory.mktemp("two_splits") / "corpus"
    shutil.copytree(tiny_corpus, folder)
    for path in tiny_corpus.glob("train.*"):
        shutil.copy(path, folder / path.name.replace("train.", "valid1.", 1))
    return folder


def kinds(save_dir: Path) -> list[tuple[str, int]]:
    lines = map(json.loads, (save_dir / "log.jsonl").read_text().splitlines())
    return [(line["kind"], line["update"]) for line in lines if line["kind"] != "train"]


class TestSeveralSplits:
    def test_validation_split_selects_the_best_model(self, two_splits: Path, tmp_path: Path) -> None:
        run = trainer(two_splits, tmp_path, validation__split="valid1", validation__sets=[{"split": "valid"}])
        run.fit()
        assert run.state.metric == "loss of valid1"
        assert run.state.best == min(loss for _, loss in losses(tmp_path, "valid"))
        assert run.state.best != min(loss for _, loss in losses(tmp_path, "valid/valid"))

    def test_each_split_is_logged_once(self, two_splits: Path, tmp_path: Path) -> None:
        changes = {"validation__sets": [{"split": "valid1"}]}
        run = trainer(two_splits, tmp_path, max_updates=4, **changes)
        run.fit()
        run.checkpoints.save_state(
            run.state.replace(pending_validation=True)
        )  # as if the run had been killed before its last validation ended
        trainer(two_splits, tmp_path, **changes).fit()
        assert sorted(kinds(tmp_path)) == [("valid", 4), ("valid", 8), ("valid/valid1", 4), ("valid/valid1", 8)]

    def test_additional_splits_do_not_change_training(self, two_splits: Path, tmp_path: Path) -> None:
        trainer(two_splits, tmp_path / "one").fit()
        trainer(two_splits, tmp_path / "two", validation__sets=[{"split": "valid1"}]).fit()
        assert losses(tmp_path / "one") == losses(tmp_path / "two")

    @pytest.mark.parametrize(
        ("sets", "words"),
        [
            ([{"split": "valid"}], "two sets named 'valid'"),
            ([{"split": "a"}, {"split": "b", "name": "a"}], "two sets named 'a'"),
            ([{"split": "b"}], "no split 'b'"),
            ([{"data": "nowhere"}], "nowhere"),
        ],
    )
    def test_invalid_validation_sets_are_refused(
        self, two_splits: Path, tmp_path: Path, sets: list[dict[str, str]], words: str
    ) -> None:
        with pytest.raises(UserError, match=words):
            trainer(two_splits, tmp_path, validation__sets=sets)

    @pytest.mark.parametrize("decides", [True, False])
    def test_empty_validation_sets_are_refused(self, tiny_corpus: Path, tmp_path: Path, decides: bool) -> None:
        shutil.copytree(tiny_corpus, tmp_path / "corpus")
        for side in ("en", "de"):
            path = tmp_path / "corpus" / f"empty.en-de.{side}"
            with IndexedWriter(path, vocabulary_size=300):
                pass
        changes = {"validation__split": "empty"} if decides else {"validation__sets": [{"split": "empty"}]}
        with pytest.raises(UserError, match="'empty' has no examples"):
            trainer(tmp_path / "corpus", tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()

    def test_split_of_different_data_may_select_the_best_model(self, two_splits: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(two_splits, other)
        sets = [{"data": str(other), "split": "valid1"}, {"split": "valid"}]
        for name, end in (("whole", (8,)), ("parts", (4, 8))):
            for updates in end:
                changes = {"validation__split": "other", "validation__sets": sets, "max_updates": updates}
                run = trainer(two_splits, tmp_path / name, **changes)
                run.fit()
        assert run.state.metric == "loss of other"
        same = trainer(two_splits, tmp_path / "same", validation__split="valid1", validation__sets=[{"split": "valid"}])
        same.fit()
        for kind in ("valid", "valid/valid", "train"):
            assert losses(tmp_path / "same", kind) == losses(tmp_path / "whole", kind)
            assert losses(tmp_path / "parts", kind) == losses(tmp_path / "whole", kind)

    def test_set_with_a_different_vocabulary_is_refused(self, two_splits: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copytree(two_splits, other)
        lines = (other / "dict.de.txt").read_text().splitlines()
        (other / "dict.de.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
        with pytest.raises(UserError, match="dictionary of 'de'") as refused:
            trainer(two_splits, tmp_path / "run", validation__sets=[{"data": str(other)}])
        assert "input=" not in str(refused.value)


class TestNames:
    def test_log_names_the_split_that_selects_the_model(
        self, two_splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sinks = [{"kind": "console"}, {"kind": "jsonl"}]
        sets = [{"split": "valid"}]
        trainer(two_splits, tmp_path, validation__split="valid1", validation__sets=sets, log__sinks=sinks).fit()
        lines = list(map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()))
        assert [line.get("split") for line in lines if line["kind"] == "valid"] == ["valid1", "valid1"]
        assert not any("split" in line for line in lines if line["kind"] != "valid")
        assert "split valid1" in capsys.readouterr().err

    def test_error_about_a_missing_split_names_the_key(self, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no split 'absent'(.|\n)*validation\.split=null"):
            trainer(tiny_corpus, tmp_path, validation__split="absent")

    def test_log_does_not_name_the_default_split(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path).fit()
        assert '"split"' not in (tmp_path / "log.jsonl").read_text()

    def test_run_with_an_old_log_without_splits_resumes(self, two_splits: Path, tmp_path: Path) -> None:
        trainer(two_splits, tmp_path, validation__split="valid1", max_updates=4).fit()
        log = tmp_path / "log.jsonl"
        log.write_text(log.read_text().replace(', "split": "valid1"', ""))
        trainer(two_splits, tmp_path, validation__split="valid1", max_updates=8).fit()
        assert [update for update, _ in losses(tmp_path, "valid")] == [4, 8]
        main([str(tmp_path), f"output={tmp_path / 'loss.png'}"])
        assert (tmp_path / "loss.png").exists()


class TestNoValidation:
    def test_run_without_validation_ends_with_a_checkpoint(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, validation__split=None).fit()
        assert not kinds(tmp_path)
        assert (tmp_path / "latest").read_text().strip() == "update_00000008"
        assert not (tmp_path / "best.safetensors").exists()

    def test_disabling_validation_does_not_change_training(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "with").fit()
        trainer(tiny_corpus, tmp_path / "without", validation__split=None).fit()
        assert losses(tmp_path / "with") == losses(tmp_path / "without")

    def test_disabling_validation_drops_a_pending_validation(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, max_updates=4)
        run.fit()
        run.checkpoints.save_state(run.state.replace(pending_validation=True))
        again = trainer(tiny_corpus, tmp_path, validation__split=None)
        again.fit()
        assert not again.state.pending_validation

    @pytest.mark.parametrize(
        "changes",
        [{"validation__patience": 3}, {"validation__sets": [{"split": "valid"}]}, {"checkpoint__keep_best": 3}],
    )
    def test_settings_without_effect_are_refused(
        self, tiny_corpus: Path, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        with pytest.raises(UserError, match=r"validation\.split=null"):
            trainer(tiny_corpus, tmp_path, validation__split=None, **changes)


class TestMaxHours:
    def test_run_that_reached_max_hours_resumes_exactly(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "whole").fit()
        first = trainer(tiny_corpus, tmp_path / "parts", max_hours=1e-9).fit()
        assert (first.signal, first.update) == (10, 1)
        trainer(tiny_corpus, tmp_path / "parts").fit()
        assert losses(tmp_path / "whole") == losses(tmp_path / "parts")

    def test_run_shorter_than_max_hours_is_not_changed(self, tiny_corpus: Path, tmp_path: Path) -> None:
        result = trainer(tiny_corpus, tmp_path, max_hours=1).fit()
        assert (result.signal, result.update) == (0, 8)
