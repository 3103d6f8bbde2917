"""batch.max_tokens=auto and update_freq=auto: the chosen values, resuming, and errors."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import tensors_of
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.training import auto_batch
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, tiny_config, trainer

AUTO: dict[str, Any] = {"batch__max_tokens": "auto", "update_freq": "auto", "batch__tokens_per_update": 800}


class TestChoice:
    def test_chosen_values_give_the_tokens_per_update(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, **AUTO)
        assert run.config.batch.max_tokens * run.config.update_freq == 800

    @pytest.mark.parametrize(("max_tokens", "update_freq"), [(400, 2), (150, 5), (1000, 1)])
    def test_auto_update_freq_is_computed_from_max_tokens(
        self, tiny_corpus: Path, tmp_path: Path, max_tokens: int, update_freq: int
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, **{**AUTO, "batch__max_tokens": max_tokens})
        assert run.config.update_freq == update_freq

    def test_auto_max_tokens_is_computed_from_update_freq(self, tiny_corpus: Path, tmp_path: Path) -> None:
        assert trainer(tiny_corpus, tmp_path, **{**AUTO, "update_freq": 4}).config.batch.max_tokens == 200

    def test_auto_max_tokens_fits_the_longest_example(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        longest = int(trainer(tiny_corpus, tmp_path).train_set.sizes_ND.max())
        monkeypatch.setattr(auto_batch, "CPU_TOKENS", longest)
        changes = {
            "batch__max_tokens": "auto",
            "batch__tokens_per_update": longest + 2,
        }  # half of this does not fit the longest example
        assert trainer(tiny_corpus, tmp_path, **changes).config.batch.max_tokens == longest
        with pytest.raises(UserError, match=rf"batch\.tokens_per_update={longest - 1}(.|\n)* {longest} "):
            trainer(tiny_corpus, tmp_path, **{**changes, "batch__tokens_per_update": longest - 1})

    def test_auto_max_tokens_fits_examples_of_later_epochs(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        longest = int(trainer(tiny_corpus, tmp_path).train_set.sizes_ND.max())
        mix = {"task__mix": [{"data": str(tiny_corpus), "weight": 0.01}]}
        first = int(trainer(tiny_corpus, tmp_path, **mix).train_set.sizes_ND.max())
        assert first < longest
        monkeypatch.setattr(auto_batch, "CPU_TOKENS", first)
        changes = {**mix, "batch__max_tokens": "auto"}
        for total in (None, longest + 2):
            config = trainer(tiny_corpus, tmp_path, **changes, batch__tokens_per_update=total).config
            assert config.batch.max_tokens == longest

    def test_less_memory_gives_smaller_batches(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auto_batch, "available_memory", lambda device: 16 << 30)
        chosen = []
        for processes in ("1", "20000"):  # processes on one machine share its memory
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
            chosen.append(trainer(tiny_corpus, tmp_path, batch__max_tokens="auto").config.batch.max_tokens)
        assert chosen[1] < chosen[0] <= auto_batch.CPU_TOKENS

    def test_error_about_too_little_memory_names_the_keys(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10**9))
        with pytest.raises(UserError, match=r"batch\.max_tokens=auto(.|\n)*model\.recompute_blocks"):
            trainer(tiny_corpus, tmp_path, batch__max_tokens="auto")

    def test_measuring_memory_does_not_change_the_model(self, tiny_corpus: Path, tmp_path: Path) -> None:
        auto = trainer(tiny_corpus, tmp_path / "a", batch__max_tokens="auto")
        fixed = trainer(tiny_corpus, tmp_path / "b", batch__max_tokens=auto.config.batch.max_tokens)
        for (name, one), other in zip(tensors_of(auto.model).items(), tensors_of(fixed.model).values(), strict=True):
            assert torch.equal(one, other), name
        assert all(weight.grad is None for weight in auto.model.parameters())

    def test_available_memory_of_an_unknown_device_is_none(self) -> None:
        assert auto_batch.available_memory(torch.device("meta")) is None
        assert (auto_batch.available_memory(torch.device("cpu")) or 1) > 0 or os.name != "posix"

    def test_free_memory_is_none_if_the_query_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(device: torch.device) -> None:
            raise RuntimeError("HIP error: invalid argument")

        monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
        assert auto_batch.available_memory(torch.device("cuda")) is None

    def test_device_with_unknown_free_memory_is_refused(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auto_batch, "available_memory", lambda device: None)
        with pytest.raises(UserError, match=r"free memory(.|\n)*Set batch\.max_tokens"):
            trainer(tiny_corpus, tmp_path, batch__max_tokens="auto")

    def test_empty_training_set_is_refused(self, tmp_path: Path) -> None:
        for name in ("train.en", "train.de", "valid.en", "valid.de"):
            (tmp_path / name).write_text("a b\n")
        preprocess(
            PreprocessConfig(
                source_lang="en",
                target_lang="de",
                tokens="words",
                train=f"{tmp_path}/train",
                valid=(f"{tmp_path}/valid",),
                min_length=3,
                destdir=f"{tmp_path}/bin",
                workers=1,
            )
        )
        with pytest.raises(UserError, match="There are no training examples"):
            trainer(tmp_path / "bin", tmp_path / "run", **AUTO).fit()


class TestRun:
    def test_auto_and_explicit_values_give_equal_losses(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path / "a", **AUTO, max_updates=3)
        run.fit()
        config = run.config
        numbers = {"batch__max_tokens": config.batch.max_tokens, "update_freq": config.update_freq}
        trainer(tiny_corpus, tmp_path / "b", **numbers, max_updates=3).fit()
        assert losses(tmp_path / "a") == losses(tmp_path / "b")

    def test_resumed_run_keeps_the_chosen_max_tokens(
        self, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = trainer(tiny_corpus, tmp_path, batch__max_tokens="auto", max_updates=2)
        first.fit()
        stored = model_file.read(tmp_path).config["batch"]["max_tokens"]
        assert stored == first.config.batch.max_tokens
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "20000")  # less memory
        second = trainer(tiny_corpus, tmp_path, batch__max_tokens="auto", max_updates=4)
        assert second.config.batch.max_tokens == stored
        second.fit()
        assert [update for update, _ in losses(tmp_path)] == [1, 2, 3, 4]

    def test_chosen_max_tokens_is_printed(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(tiny_corpus, tmp_path, **AUTO, max_updates=1).fit()
        assert "batch.max_tokens=" in capsys.readouterr().err
        assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["update"] == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"update_freq": "auto"}, "tokens_per_update"),
        ({"update_freq": "auto", "batch__tokens_per_update": 8, "batch__max_tokens": None}, "max_tokens"),
        ({"batch__max_tokens": "auto", "batch__streams": 2}, "streams"),
        ({"batch__tokens_per_update": 800}, r"batch\.tokens_per_update=800 has no effect"),
        ({"batch__max_tokens": "all"}, "max_tokens=all"),
    ],
)
def test_inconsistent_settings_are_refused(tiny_corpus: Path, tmp_path: Path, changes: Any, key: str) -> None:
    with pytest.raises(UserError, match=key):
        Trainer(tiny_config(tiny_corpus, tmp_path, **changes), engine=start_engine(device="cpu"))
    assert list(tmp_path.iterdir()) == []
