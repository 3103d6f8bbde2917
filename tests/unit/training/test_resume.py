"""Resuming is bit-exact wherever a run ended, and is refused if certain settings or the data have changed."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seqtk.checkpoint import model_file
from seqtk.checkpoint.edit import checkpoints_of
from seqtk.checkpoint.model_file import ModelFile, tensors_of
from seqtk.checkpoint.run_state import fingerprint, latest_checkpoint, locked
from seqtk.training.resume import Difference, config_diff, saved_config
from seqtk.training.trainer import Trainer, train
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, tiny_config, trainer

OLD_RUNS: dict[str, Any] = json.loads((Path(__file__).parent / "runs_0_1_0.json").read_text())


class KilledError(Exception):
    """Raised to end a run at a chosen point."""


def listed(folder: Path) -> list[int]:
    """Returns the updates of the checkpoints in a folder."""
    return sorted(int(path.name.removeprefix("update_")) for path in folder.glob("update_????????"))


def assert_same_weights(one: Trainer, other: Trainer) -> None:
    tensors = tensors_of(other.model)
    assert [name for name, tensor in tensors_of(one.model).items() if not torch.equal(tensor, tensors[name])] == []


def interrupt(run: Trainer, *, update: int, training: bool, how: str = "signal") -> None:
    """Ends the run in the first forward pass of training or validation after `update` updates."""

    def hook(module: Any, inputs: Any) -> None:
        if module.training is training and run.state.update == update:
            if how == "killed":
                raise KilledError
            if not run.stop.noted:
                signal.raise_signal(signal.SIGTERM)

    run.step.register_forward_pre_hook(hook)


class TestExactness:
    @pytest.mark.parametrize("log_every", [1, 5])
    def test_resuming_after_sigterm_is_bit_exact(self, tiny_corpus: Path, tmp_path: Path, log_every: int) -> None:
        changes = {"max_updates": 12, "log__every": log_every}
        whole = trainer(tiny_corpus, tmp_path / "whole", **changes)
        whole.fit()
        for stop_after in (3, 4, 7):
            first = trainer(tiny_corpus, tmp_path / str(stop_after), **changes, checkpoint__every=1)
            interrupt(first, update=stop_after - 1, training=True)
            assert first.fit().signal == signal.SIGTERM
            assert first.state.update == stop_after
            second = trainer(tiny_corpus, tmp_path / str(stop_after), **changes)
            assert second.state.update == stop_after
            assert second.fit().signal == 0
            assert_same_weights(whole, second)
            for kind in ("train", "valid"):
                assert losses(tmp_path / "whole", kind) == losses(tmp_path / str(stop_after), kind)

    def test_resuming_after_an_exception_is_bit_exact(self, tiny_corpus: Path, tmp_path: Path) -> None:
        whole = trainer(tiny_corpus, tmp_path / "whole")
        whole.fit()
        killed = trainer(tiny_corpus, tmp_path / "killed")
        interrupt(killed, update=5, training=True, how="killed")  # the last checkpoint is from update 4
        with pytest.raises(KilledError):
            killed.fit()
        again = trainer(tiny_corpus, tmp_path / "killed")
        assert again.state.update == 4
        again.fit()
        assert_same_weights(whole, again)
        assert losses(tmp_path / "whole") == losses(tmp_path / "killed")

    def test_resuming_a_finished_run_performs_no_update(self, tiny_corpus: Path, tmp_path: Path) -> None:
        first = trainer(tiny_corpus, tmp_path)
        first.fit()
        again = trainer(tiny_corpus, tmp_path)
        again.fit()
        assert again.state.update == 8
        assert_same_weights(first, again)

    def test_sigterm_ends_the_run_after_the_current_update(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path)
        interrupt(run, update=1, training=True)
        assert run.fit().signal == signal.SIGTERM
        assert run.state.update == 2


class TestPendingValidation:
    @pytest.mark.parametrize("how", ["killed", "signal"])
    @pytest.mark.parametrize("update", [4, 8])
    def test_resumed_run_does_the_pending_validation_once(
        self, tiny_corpus: Path, tmp_path: Path, update: int, how: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The checkpoint of an update is written before its validation."""
        trainer(tiny_corpus, tmp_path / "whole", validation__patience=9).fit()
        first = trainer(tiny_corpus, tmp_path / "parts", validation__patience=9)
        interrupt(first, update=update, training=False, how=how)
        if how == "killed":
            with pytest.raises(KilledError):
                first.fit()
        else:
            assert first.fit().signal == signal.SIGTERM
            printed = capfd.readouterr().err
            assert f"Stopping after update {update};" in printed
            assert "resumes the run, starting with its validation." in printed
        assert first.state.update == update
        assert latest_checkpoint(tmp_path / "parts") == tmp_path / "parts" / f"update_{update:08d}"
        assert [at for at, _ in losses(tmp_path / "parts", "valid")] == list(range(4, update, 4))
        second = trainer(tiny_corpus, tmp_path / "parts", validation__patience=9)
        assert second.state.pending_validation
        assert second.fit().signal == 0
        for kind in ("train", "valid"):
            assert losses(tmp_path / "whole", kind) == losses(tmp_path / "parts", kind)
        states = [
            json.loads((tmp_path / folder / "update_00000008" / "state.json").read_text())
            for folder in ("whole", "parts")
        ]
        assert states[0] | {"seconds": 0, "crc32": 0} == states[1] | {"seconds": 0, "crc32": 0}
        assert not states[0]["pending_validation"]
        assert trainer(tiny_corpus, tmp_path / "parts", validation__patience=9).fit().signal == 0
        assert [at for at, _ in losses(tmp_path / "parts", "valid")] == [4, 8]

    def test_pending_validation_is_not_logged_twice(self, tiny_corpus: Path, tmp_path: Path) -> None:
        first = trainer(tiny_corpus, tmp_path, max_updates=4)
        first.fit()
        pending = first.state.replace(pending_validation=True, best=None, validations_without_best=0)
        first.checkpoints.save_state(pending)
        trainer(tiny_corpus, tmp_path, max_updates=4).fit()
        assert [at for at, _ in losses(tmp_path, "valid")] == [4]
        assert [at for at, _ in losses(tmp_path)] == [1, 2, 3, 4]


class TestOldRuns:
    """Runs of version 0.1.0. `runs_0_1_0.json` has configs that 0.1.0 wrote."""

    @pytest.mark.parametrize("name", OLD_RUNS)
    def test_configs_of_version_0_1_0_are_read(self, name: str) -> None:
        tree = {**OLD_RUNS["demo"], **OLD_RUNS[name]}
        saved = saved_config(ModelFile({}, tree, {}, {"version": "0.1.0"}), source=name)
        assert config_diff(saved, saved, source=name) == []

    def test_demo_run_of_version_0_1_0_resumes(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "whole").fit()
        trainer(tiny_corpus, tmp_path / "old", max_updates=4).fit()
        folder = tmp_path / "old" / "update_00000004"
        model = model_file.read(folder)
        model.config["task"] = {**OLD_RUNS["demo"]["task"], "data": str(tiny_corpus)}
        model_file.write(folder / "model.safetensors", model)
        write_old_state(folder)
        trainer(tiny_corpus, tmp_path / "old").fit()
        assert losses(tmp_path / "old") == losses(tmp_path / "whole")

    def test_state_of_version_0_1_0_is_read(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=4).fit()
        write_old_state(tmp_path / "update_00000004", pending=True)
        assert trainer(tiny_corpus, tmp_path).state.pending_validation


def write_old_state(folder: Path, *, pending: bool = False) -> None:
    """Rewrites the state of a checkpoint in the format of version 0.1.0."""
    state = json.loads((folder / "state.json").read_text())
    for name in ("pending_validation", "corpus", "loss_scale", "files", "crc32"):
        del state[name]
    (folder / "state.json").write_text(json.dumps({**state, "validation_owed": pending}))


class TestArchive:
    @pytest.mark.parametrize("began_at", [0, 2])
    def test_checkpoints_newer_than_latest_are_archived(
        self, tiny_corpus: Path, tmp_path: Path, began_at: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kept = {"checkpoint__every": 1, "checkpoint__keep_last": 9, "checkpoint__keep_best": 9, "validation__every": 2}
        trainer(tiny_corpus, tmp_path, **kept).fit()
        pointer = tmp_path / "latest"
        pointer.write_text(f"update_{began_at:08d}") if began_at else pointer.unlink()
        if began_at:
            assert [path.name for path in checkpoints_of(tmp_path)] == ["update_00000001", "update_00000002"]
        again = trainer(tiny_corpus, tmp_path, **{**kept, "checkpoint__keep_last": 2, "max_updates": 4})
        again.fit()
        assert listed(tmp_path) == [3, 4]
        assert pointer.read_text() == "update_00000004"
        archive = tmp_path / "abandoned_1"
        assert listed(archive) == list(range(began_at + 1, 9))
        assert f"after update {began_at}, from an abandoned session, to {archive}" in capsys.readouterr().err
        assert {int(path.stem[-8:]) for path in tmp_path.glob("best_loss_*")} == {2, 4}
        assert {int(path.stem[-8:]) for path in archive.glob("best_loss_*")} == set(range(began_at + 2, 9, 2))
        assert model_file.read(archive / "best.safetensors").info["update"] > began_at
        assert model_file.read(tmp_path / "best.safetensors").info["update"] <= 4

    def test_resumed_run_archives_nothing(self, tiny_corpus: Path, tmp_path: Path) -> None:
        for end in (3, 6):
            trainer(tiny_corpus, tmp_path, max_updates=end, checkpoint__every=1).fit()
        assert listed(tmp_path) == [2, 3, 4, 5, 6]
        assert not list(tmp_path.glob("abandoned*"))


class TestSettings:
    @pytest.mark.parametrize(("key", "value"), [("model__dim", 32), ("seed", 2)])
    def test_changing_an_invariant_setting_is_refused(
        self, tiny_corpus: Path, tmp_path: Path, key: str, value: int
    ) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=1).fit()
        with pytest.raises(UserError, match=rf"{key.replace('__', '.')}=\d+, but the current value is {value}"):
            trainer(tiny_corpus, tmp_path, **{key: value})

    def test_error_writes_lists_in_command_line_syntax(self, tmp_path: Path) -> None:
        mix = [{"data": "a", "weight": 2.0}, {"data": "b"}]
        saved, now = tiny_config(tmp_path, tmp_path, task__mix=mix), tiny_config(tmp_path, tmp_path)
        with pytest.raises(UserError, match=r"task\.mix=\[{data: a, weight: 2\.0}, {data: b, weight: 1\.0}\], but"):
            config_diff(saved, now, source="x")

    def test_changing_batch_streams_is_refused(self, tmp_path: Path) -> None:
        saved, now = (tiny_config(tmp_path, tmp_path, batch__streams=streams) for streams in (None, 2))
        with pytest.raises(UserError, match=r"batch\.streams=null, but the current value is 2"):
            config_diff(saved, now, source="x")

    @pytest.mark.parametrize(
        ("changes", "lines"),
        [
            (
                {"attention": "luna"},
                [
                    "model.encoder.self_attention=softmax, but the current value is luna.",
                    "model.decoder.self_attention",
                ],
            ),
            (
                {"attention": ["softmax", "luna"], "model__encoder__layers": 2, "model__decoder__layers": 2, "seed": 2},
                ["seed=1, but the current value is 2.", "model.encoder.layers, model.encoder.self_attention, "],
            ),
            (
                {"model__encoder__self_attention__dropout": 0.5},
                ["model.encoder.self_attention.dropout=0.0, but the current value is 0.5"],
            ),
        ],
    )
    def test_error_names_the_changed_settings(
        self, tiny_corpus: Path, tmp_path: Path, changes: dict[str, Any], lines: list[str]
    ) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=1).fit()
        with pytest.raises(UserError) as raised:
            trainer(tiny_corpus, tmp_path, **changes)
        printed = str(raised.value).splitlines()
        assert len(printed) == len(lines) + 1
        assert all(part in line for part, line in zip(lines, printed, strict=False))
        assert "save_dir" in printed[-1]
        assert max(map(len, printed)) < 250

    def test_changing_the_optimizer_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=1).fit()
        with pytest.raises(UserError, match="optimizer=adam, but the current value is sgd"):
            trainer(tiny_corpus, tmp_path, optimizer="sgd")

    def test_changed_settings_are_printed(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(tiny_corpus, tmp_path).fit()
        trainer(tiny_corpus, tmp_path).fit()
        assert "Changed settings" not in capsys.readouterr().err
        other = {"optimizer__lr": 0.5, "criterion": "cross_entropy"}
        trainer(tiny_corpus, tmp_path, **other).fit()
        printed = capsys.readouterr().err
        changed = "criterion=cross_entropy (was label_smoothed_cross_entropy), optimizer.lr=0.5 (was 0.01)"
        assert f"Changed settings: {changed}.\n" in printed
        assert "changed settings had no effect" in printed
        trainer(tiny_corpus, tmp_path, **other, max_updates=9).fit()
        printed = capsys.readouterr().err
        assert f"Changed settings: max_updates=9 (was 8), {changed}.\n" in printed
        assert "no effect" not in printed
        many = {"clip_norm": 1.0, "update_freq": 2, "log__every": 3, "checkpoint__every": 2, "validation__every": 3}
        trainer(tiny_corpus, tmp_path, **other, **many, max_updates=10).fit()
        assert capsys.readouterr().err.count(" (was ") == 1 + len(many)

    def test_changed_learning_rate_schedule_is_printed(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        schedule = {"kind": "cosine", "warmup_updates": 2}
        trainer(tiny_corpus, tmp_path, schedule=schedule).fit()
        trainer(tiny_corpus, tmp_path, schedule=schedule, max_updates=10).fit()
        printed = capsys.readouterr().err
        assert (
            "learning rate of update 9 is 0.00146 (was 0.001), because the schedule now spans max_updates=10" in printed
        )

    def test_max_updates_update_freq_and_logging_may_change(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2).fit()
        run = trainer(tiny_corpus, tmp_path, max_updates=4, update_freq=2, log__every=2, batch__workers=0)
        run.fit()
        assert run.state.update == 4


class TestCorpus:
    def test_moved_corpus_is_accepted(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "run", max_updates=1).fit()
        moved = shutil.copytree(tiny_corpus, tmp_path / "moved")
        assert trainer(moved, tmp_path / "run").state.update == 1

    def test_corpus_with_a_different_vocabulary_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "run", max_updates=1).fit()
        moved = shutil.copytree(tiny_corpus, tmp_path / "moved")
        lines = (moved / "dict.de.txt").read_text().splitlines()
        for lang in ("en", "de"):
            (moved / f"dict.{lang}.txt").write_text("\n".join([*lines[:-1], "other 1"]) + "\n")
        with pytest.raises(UserError, match=r"vocabularies(.|\n)*task\.data"):
            trainer(moved, tmp_path / "run")

    def test_corpus_with_different_lengths_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "run", max_updates=1).fit()
        other = shutil.copytree(tiny_corpus, tmp_path / "other")
        for path in other.glob("valid.*"):
            shutil.copy(path, other / path.name.replace("valid", "train"))
        with pytest.raises(UserError, match=r"data that differ from .*other: 300 examples (.|\n)*task\.data"):
            trainer(other, tmp_path / "run")

    def test_fingerprint_depends_on_counts_and_lengths(self) -> None:
        class Sizes:
            truncated = 0

            def __init__(self, *sizes: tuple[int, int]) -> None:
                self.sizes_ND = np.array(sizes, dtype=np.int32)

            def __len__(self) -> int:
                return len(self.sizes_ND)

            def __getitem__(self, index: int) -> None: ...

        found = {fingerprint([Sizes(*sizes)]) for sizes in ([(1, 2)], [(1, 3)], [(1, 2), (1, 2)], [(2, 1)])}
        assert len(found) == 4

    def test_data_that_changed_in_place_are_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        corpus = shutil.copytree(tiny_corpus, tmp_path / "corpus")
        trainer(corpus, tmp_path / "run", max_updates=1).fit()
        for path in corpus.glob("valid.*"):
            shutil.copy(path, corpus / path.name.replace("valid", "train"))
        with pytest.raises(UserError) as refused:
            trainer(corpus, tmp_path / "run")
        checkpoint = tmp_path / "run" / "update_00000001"
        assert str(refused.value).splitlines() == [
            f"The training data in {corpus} have changed since {checkpoint}: 300 examples before, 100 now.",
            "Restore the data to resume, or set a different save_dir to start a new run.",
        ]
        assert listed(tmp_path / "run") == [1]

    def test_corpus_with_different_tokens_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "run", max_updates=1).fit()
        other = shutil.copytree(tiny_corpus, tmp_path / "other")
        (path,) = other.glob("train*.de.bin")
        content = path.read_bytes()
        path.write_bytes(content[2:4] + content[:2] + content[4:])  # the first two tokens
        with pytest.raises(UserError, match=r"data that differ from .*other: 300 examples in both(.|\n)*task\.data"):
            trainer(other, tmp_path / "run")

    def test_changed_or_added_shard_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        first, second = (shutil.copytree(tiny_corpus, tmp_path / name) for name in ("first", "second"))
        both, run = Path(f"{first},{second}"), tmp_path / "run"
        trainer(both, run, max_updates=1).fit()
        (path,) = second.glob("train*.de.bin")
        content = path.read_bytes()
        path.write_bytes(content[2:4] + content[:2] + content[4:])  # the first two tokens
        with pytest.raises(UserError, match=r"have changed since .*: 300 \+ 300 examples in both"):
            trainer(both, run)
        path.write_bytes(content)
        assert trainer(Path(f"{first},{first}"), run).state.update == 1  # has the same content
        with pytest.raises(UserError, match=r": 300 \+ 300 examples before, 300 now"):
            trainer(first, run)
        trainer(first, tmp_path / "one", max_updates=1).fit()
        with pytest.raises(UserError, match=r": 300 examples before, 300 \+ 300 now"):
            trainer(both, tmp_path / "one")

    def test_runs_with_fingerprints_of_the_first_shard_resume(self, tiny_corpus: Path, tmp_path: Path) -> None:
        both = Path(f"{tiny_corpus},{tiny_corpus}")
        trainer(both, tmp_path, max_updates=1).fit()
        path = tmp_path / "update_00000001" / "state.json"
        state = json.loads(path.read_text())
        state["corpus"] = state["corpus"].partition(" + ")[0]
        del state["crc32"]
        path.write_text(json.dumps(state))
        assert trainer(both, tmp_path).state.update == 1


def flip(path: Path, *, at: float = 0.9) -> None:
    """Flips one bit of a file, at the fraction `at` of its length."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)


class TestDamage:
    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
    @pytest.mark.parametrize("how", ["cut", "flipped", "header", "gone"])
    def test_damaged_checkpoint_falls_back_to_the_previous(
        self, tiny_corpus: Path, tmp_path: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changes = {"checkpoint__every": 1, "validation__every": 100, "max_updates": 2}
        trainer(tiny_corpus, tmp_path, **changes).fit()
        path = tmp_path / "update_00000002" / name
        if how == "cut":
            path.write_bytes(path.read_bytes()[:50])
        elif how == "gone":
            path.unlink()
        else:
            flip(path, at=0.9 if how == "flipped" else 0.1)
        run = trainer(tiny_corpus, tmp_path, **changes)
        assert run.state.update == 1
        capsys.readouterr()
        run.fit()
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "update_00000001" in line)
        assert str(path) in line
        assert trainer(tiny_corpus, tmp_path, **changes).state.update == 2
        assert listed(tmp_path / "abandoned_1") == [2]

    def test_missing_checkpoint_folder_is_skipped(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2, checkpoint__every=1).fit()
        shutil.rmtree(tmp_path / "update_00000002")
        assert trainer(tiny_corpus, tmp_path).state.update == 1

    def test_run_with_only_damaged_checkpoints_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2, checkpoint__every=1).fit()
        for path in tmp_path.glob("update_*/optimizer.safetensors"):
            flip(path)
        with pytest.raises(UserError, match=r"00000002/optimizer.safetensors is damaged(.|\n)*save_dir") as raised:
            trainer(tiny_corpus, tmp_path)
        assert str(raised.value).count("\n") < 3

    def test_every_flipped_bit_of_a_model_is_detected(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """The flipped bits are in the tensors and in the header, which has the config and the vocabularies."""
        trainer(tiny_corpus, tmp_path, max_updates=1).fit()
        path = tmp_path / "best.safetensors"
        whole = path.read_bytes()
        random = np.random.default_rng(1)
        for position, bit in zip(random.integers(8, len(whole), 60), random.integers(0, 8, 60), strict=True):
            content = bytearray(whole)
            content[position] ^= 1 << int(bit)
            path.write_bytes(content)
            with pytest.raises(UserError) as raised:
                model_file.read(path)
            assert str(path) in str(raised.value)
            assert str(raised.value).count("\n") <= 2

    def test_model_files_without_checksums_are_read(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=1).fit()
        path = tmp_path / "best.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = {name: text for name, text in file.metadata().items() if name != "crc32"}
            save_file({name: file.get_tensor(name) for name in file.keys()}, path, metadata)  # noqa: SIM118
        flip(path, at=0.999)
        assert model_file.read(path).tensors

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"\n"])
    def test_damaged_latest_file_lists_the_checkpoints(self, tiny_corpus: Path, tmp_path: Path, content: bytes) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2, checkpoint__every=1).fit()
        (tmp_path / "latest").write_bytes(content)
        with pytest.raises(UserError, match=r"latest(.|\n)*update_00000001, update_00000002"):
            trainer(tiny_corpus, tmp_path)


class TestFolder:
    def test_save_dir_is_locked_by_a_run(self, tiny_corpus: Path, tmp_path: Path) -> None:
        config = tiny_config(tiny_corpus, tmp_path, max_updates=1)
        with locked(tmp_path), pytest.raises(UserError, match="Another run"):
            train(config)
        assert train(config).update == 1

    def test_refused_run_leaves_no_folder(self, tiny_corpus: Path, tmp_path: Path) -> None:
        config = tiny_config(tiny_corpus, tmp_path / "a" / "b", batch__max_tokens=1)
        with pytest.raises(UserError, match=r"batch\.max_tokens=1"):
            train(config)
        assert not list(tmp_path.iterdir())

    def test_refused_run_keeps_an_existing_folder(self, tiny_corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "notes").touch()
        with pytest.raises(UserError, match=r"batch\.max_tokens=1"):
            train(tiny_config(tiny_corpus, tmp_path, batch__max_tokens=1))
        assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("difference", "refused"),
    [
        (Difference("optimizer.inner", "adamw", "muon", is_kind=True), True),
        (Difference("optimizer.inner.lr", 0.1, 0.2), False),
        (Difference("model.encoder.self_attention", "softmax", "luna", is_kind=True), True),
        (Difference("schedule", "cosine", "wsd", is_kind=True), False),
        (Difference("task.data", "a", "b"), False),
        (Difference("task.source_lang", "en", "de"), True),
    ],
    ids=str,
)
def test_only_changes_of_invariant_settings_are_refused(difference: Difference, refused: bool) -> None:
    assert difference.is_refused is refused
