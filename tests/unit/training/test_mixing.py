"""Training on a mix of corpora: bit-exact resuming, logged counts, and errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtk.config import schema
from seqtk.data.plan import reading_order
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, trainer


@pytest.fixture(scope="module")
def other(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with the vocabulary of `tiny_corpus`. Its training text is the validation text of `tiny_corpus`."""
    folder = tmp_path_factory.mktemp("mix") / "other"
    folder.mkdir()
    for path in tiny_corpus.glob("valid.*"):
        shutil.copy(path, folder / path.name.replace("valid.", "train.", 1))
    for path in (*tiny_corpus.glob("dict*"), *tiny_corpus.glob("sentencepiece*"), tiny_corpus / "preprocess.json"):
        shutil.copy(path, folder)
    return folder


def mix(*corpora: Path, weights: tuple[float, ...] = (1, 1)) -> list[dict[str, Any]]:
    return [{"data": str(path), "weight": weight} for path, weight in zip(corpora, weights, strict=True)]


class TestRun:
    def test_resuming_a_mix_is_bit_exact(self, tiny_corpus: Path, other: Path, tmp_path: Path) -> None:
        changes = {"task__mix": mix(tiny_corpus, other, weights=(0.3, 0.1)), "max_updates": 30}
        trainer(tiny_corpus, tmp_path / "whole", **changes).fit()
        for end in (5, 17, 30):
            run = trainer(tiny_corpus, tmp_path / "parts", **{**changes, "max_updates": end})
            run.fit()
        assert run.state.position.epoch > 2
        assert losses(tmp_path / "whole") == losses(tmp_path / "parts")

    def test_number_of_examples_per_corpus_is_logged(self, tiny_corpus: Path, other: Path, tmp_path: Path) -> None:
        changes = {"batch__max_tokens": 2000, "checkpoint__every": 100, "validation__every": 100}
        run = trainer(tiny_corpus, tmp_path, task__mix=mix(tiny_corpus, other), max_updates=0, max_epochs=2, **changes)
        run.fit()
        lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
        counts = [line for line in lines if line["kind"] == "examples"]
        assert [counts[-1][str(path)] for path in (tiny_corpus, other)] == [600, 200]
        assert run.state.position.epoch == 3

    def test_mix_of_one_corpus_trains_like_the_corpus(self, tiny_corpus: Path, tmp_path: Path) -> None:
        mixed = trainer(tiny_corpus, tmp_path / "a", task__mix=mix(tiny_corpus, weights=(1,)), max_updates=3)
        mixed.fit()
        trainer(tiny_corpus, tmp_path / "b", max_updates=3).fit()
        assert losses(tmp_path / "a") == losses(tmp_path / "b")

    def test_corpora_may_have_different_languages(self, tiny_corpus: Path, tmp_path: Path) -> None:
        other = tmp_path / "french"
        other.mkdir()
        for path in tiny_corpus.glob("*.*"):
            shutil.copy(path, other / path.name.replace("en-de", "en-fr").replace(".de.", ".fr."))
        (other / "preprocess.json").unlink()
        french = {"data": str(other), "target_lang": "fr"}
        run = trainer(tiny_corpus, tmp_path / "run", task__mix=[*mix(tiny_corpus, weights=(1,)), french])
        assert len(run.train_set) == 600

    @pytest.mark.parametrize("task", ["language_modeling", "masked_lm"])
    def test_text_corpora_are_mixed_by_samples(self, tmp_path: Path, task: str) -> None:
        for name, text in (("a", "ab ba\n" * 90), ("b", "b a b\n" * 40)):
            (tmp_path / name).write_text(text)
            files = {"train": str(tmp_path / name), "valid": (str(tmp_path / name),)}
            preprocess(PreprocessConfig(**files, tokens="bytes", destdir=str(tmp_path / f"{name}.bin")))  # type: ignore[arg-type]
        a, b = tmp_path / "a.bin", tmp_path / "b.bin"
        model = "transformer_lm" if task == "language_modeling" else "transformer_masked_lm"
        changes = {
            "task": {"kind": task, "data": str(a), "tokens_per_sample": 16, "mix": mix(a, b, weights=(0.5, 3))},
            "model": {"kind": model, "dim": 16, "ffn_dim": 32, "heads": 2},
        }
        run = _run(tmp_path / "run", **changes)
        assert len(run.train_set) == sum(run.train_set.counts)  # type: ignore[attr-defined]
        run.fit()
        with pytest.raises(UserError, match=r"batch\.streams"):
            _run(tmp_path / "streams", **{**changes, "batch": {"streams": 2}})


def _run(save_dir: Path, **changes: Any) -> Trainer:
    tree = {
        "save_dir": str(save_dir),
        "device": "cpu",
        "max_updates": 4,
        "log": {"tensorboard": False},
        "batch": {"max_tokens": 200},
        "criterion": {"kind": "cross_entropy"},
        **changes,
    }
    return Trainer(schema.from_dict(TrainConfig, tree), engine=start_engine(device="cpu"))


class TestRefused:
    def test_temperature_without_a_mix_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"task\.temperature=5\.0 has no effect"):
            trainer(tiny_corpus, tmp_path / "run", task__temperature=5)

    def test_corpus_with_a_different_vocabulary_is_refused(
        self, tiny_corpus: Path, other: Path, tmp_path: Path
    ) -> None:
        changed = tmp_path / "changed"
        shutil.copytree(other, changed)
        text = (changed / "dict.de.txt").read_text().splitlines()
        (changed / "dict.de.txt").write_text("\n".join([text[1], text[0], *text[2:]]) + "\n")
        with pytest.raises(UserError, match=r"task\.mix: The dictionary of 'de'"):
            trainer(tiny_corpus, tmp_path / "run", task__mix=mix(tiny_corpus, changed))

    @pytest.mark.parametrize("data", ["", "nowhere"])
    def test_missing_corpus_is_refused(self, tiny_corpus: Path, tmp_path: Path, data: str) -> None:
        with pytest.raises(UserError, match=r"task\.mix"):
            trainer(tiny_corpus, tmp_path / "run", task__mix=[{"data": data}])

    def test_shards_in_a_mix_are_refused(self, tiny_corpus: Path, other: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="shards"):
            trainer(tiny_corpus, tmp_path / "run", task__mix=[{"data": f"{tiny_corpus},{other}"}])

    def test_resuming_with_a_different_corpus_is_refused(self, tiny_corpus: Path, other: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "run", task__mix=mix(tiny_corpus, other)).fit()
        moved, swapped = tmp_path / "moved", tmp_path / "swapped"
        shutil.copytree(other, moved)
        trainer(tiny_corpus, tmp_path / "run", task__mix=mix(tiny_corpus, moved), max_updates=9).fit()
        shutil.copytree(tiny_corpus, swapped)
        with pytest.raises(
            UserError, match=rf"on data that differ from {tiny_corpus}, {swapped}: (.|\n)*Set task\.mix"
        ):
            trainer(tiny_corpus, tmp_path / "run", task__mix=mix(tiny_corpus, swapped))
        start = {"init_from": str(tmp_path / "run"), "reset": ["optimizer", "schedule", "best"]}
        with pytest.raises(UserError, match=rf"on data that differ from {tiny_corpus}, {swapped}"):
            trainer(tiny_corpus, tmp_path / "new", task__mix=mix(tiny_corpus, swapped), **start)
        shutil.rmtree(moved)
        shutil.copytree(tiny_corpus, moved)
        with pytest.raises(UserError, match=rf"data in {tiny_corpus}, {moved} have changed since"):
            trainer(tiny_corpus, tmp_path / "run", task__mix=mix(tiny_corpus, moved))

    def test_resuming_with_a_different_weight_is_refused(self, tiny_corpus: Path, other: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "run", task__mix=mix(tiny_corpus, other)).fit()
        with pytest.raises(UserError, match=r"task\.mix\[1\]\.weight"):
            trainer(tiny_corpus, tmp_path / "run", task__mix=mix(tiny_corpus, other, weights=(1, 2)))


class TestOtherBatchesOnResuming:
    """Resuming in the middle of an epoch with different batch settings."""

    def test_each_example_is_read_once(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        update = Trainer.update

        def noting(self: Trainer, micro_batches: Any) -> None:
            seen.extend(index for batch in micro_batches if batch.weight for index in batch.ids_B.tolist())
            update(self, micro_batches)

        monkeypatch.setattr(Trainer, "update", noting)
        first = {"max_epochs": 1, "validation__split": None}
        for end, changes in (
            (3, {"batch__max_tokens": 200}),
            (5, {"batch__max_tokens": 600, "update_freq": 2}),
            (6, {"batch__max_tokens": 300, "batch__bucket": 3}),
            (7, {"batch__max_tokens": 300, "batch__bucket": 3}),
            (9, {"batch__shapes": 3}),
            (0, {"batch__max_tokens": 200, "batch__max_sentences": 9}),
        ):
            run = trainer(tiny_corpus, tmp_path, max_updates=end, **changes, **first)
            run.fit()
        assert sorted(seen) == list(range(300))
        assert run.state.position.epoch == 2
        assert not run.state.position.earlier

    def test_changed_batch_settings_are_printed(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=3).fit()
        run = trainer(tiny_corpus, tmp_path, batch__max_tokens=200)
        assert any("batch.max_tokens=200 (was 400)" in note for note in run.notes)
        assert run.state.position.earlier[0].examples == run.state.position.examples

    def test_changing_workers_keeps_the_batches(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=3).fit()
        assert not trainer(tiny_corpus, tmp_path, batch__workers=0).state.position.earlier

    @pytest.mark.parametrize("max_epochs", [1, 2])
    @pytest.mark.parametrize("every", [0, 4])
    def test_epoch_ends_if_remaining_examples_are_too_long(
        self, tiny_corpus: Path, tmp_path: Path, every: int, max_epochs: int
    ) -> None:
        """The model of the end of the epoch, or of the run, is validated and saved."""
        run = trainer(tiny_corpus, tmp_path, max_updates=15, validation__split=None)
        run.fit()
        sizes_ND, position = run.train_set.sizes_ND, run.state.position
        read_N = reading_order(sizes_ND, run.config.batch, seed=1, position=position)[: position.examples]
        limit = int(np.delete(sizes_ND.max(axis=1), read_N).min()) - 1
        changes = {"max_updates": 0, "max_epochs": max_epochs, "batch__max_length": limit, "validation__every": every}
        again = trainer(tiny_corpus, tmp_path, **changes)
        again.fit()
        assert again.state.position.epoch == max_epochs + 1
        assert (again.state.update == 15) == (max_epochs == 1)
        assert not again.state.pending_validation
        validated = [update for update, _ in losses(tmp_path, "valid")]
        assert (15 in validated) == (max_epochs == 1 or every == 0)
        assert validated[-1] == again.state.update
        resumed = trainer(tiny_corpus, tmp_path, **changes)
        assert resumed.state.position == again.state.position
