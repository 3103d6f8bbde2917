"""The training loop: updates, epochs, validation, best models, and errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import checkpoint_folders, tensors_of
from seqtk.data.plan import epoch_batches
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validate
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, sums_of, trainer
from tools.count_host_reads import count_host_reads

PERFORMER: dict[str, Any] = {"model__attention": {"kind": "performer", "redraw_every": 2}}


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(run.model).items()}


def batch_of(run: Trainer, indices: range | list[int]) -> Any:
    return run.task.collate([run.train_set[index] for index in indices])


def finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


class TestUpdate:
    @pytest.mark.parametrize("cut", [2, 3, 8])
    def test_update_does_not_depend_on_micro_batches(self, tiny_corpus: Path, tmp_path: Path, cut: int) -> None:
        examples = list(range(24))
        results = []
        for pieces in (1, cut):
            run = trainer(tiny_corpus, tmp_path / str(pieces), model__dropout=0.0)
            size = len(examples) // pieces
            parts = [examples[start : start + size] for start in range(0, len(examples), size)]
            run.update([batch_of(run, part) for part in parts])
            results.append((sums_of(run), torch.cat([tensor.flatten() for tensor in weights(run).values()])))
        (one, one_weights), (other, other_weights) = results
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        # Adam normalizes gradients, so that gradients that are only rounding errors give different updates.
        assert torch.allclose(one_weights, other_weights, atol=2e-3)
        assert (one_weights - other_weights).abs().mean() < 1e-6

    def test_empty_batch_does_not_change_the_update(self, tiny_corpus: Path, tmp_path: Path) -> None:
        results = []
        for extra in (False, True):
            run = trainer(tiny_corpus, tmp_path / str(extra), model__dropout=0.0)
            batch = batch_of(run, range(8))
            run.update([batch, batch.as_empty()] if extra else [batch])
            results.append(weights(run))
        for name, tensor in results[0].items():
            assert torch.allclose(tensor, results[1][name], atol=1e-7), name

    @pytest.mark.parametrize("changes", [{"optimizer": "adam"}, {"optimizer": "sgd"}, {"optimizer": "nag"}, PERFORMER])
    def test_update_copies_no_value_to_the_host(
        self, tiny_corpus: Path, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, clip_norm=0.1, **changes)
        batch = batch_of(run, range(8))
        run.update([batch])
        assert count_host_reads(lambda: run.update([batch])) == 0

    def test_clip_norm_scales_the_update(self, tiny_corpus: Path, tmp_path: Path) -> None:
        changes = {"optimizer": {"kind": "sgd", "lr": 1.0}, "schedule": "constant", "model__dropout": 0.0}
        moved, norms = [], []
        for clip_norm in (0.0, 0.5):
            run = trainer(tiny_corpus, tmp_path / str(clip_norm), **changes, clip_norm=clip_norm)
            before = weights(run)
            run.update([batch_of(run, range(24))])
            norms.append(sums_of(run)["norm"])
            steps = [(before[name] - tensor).flatten() for name, tensor in weights(run).items()]
            moved.append(float(torch.cat(steps).norm()))
        assert norms[0] == norms[1] > 0.5
        assert moved[1] / moved[0] == pytest.approx(0.5 / norms[0], rel=1e-3)

    def test_random_features_depend_on_the_update_only(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """Features differ between layers and updates. A resumed run has the same features."""

        def projections(folder: str, *stops: int) -> list[list[torch.Tensor]]:
            found = []
            for stop in stops:
                run = trainer(tiny_corpus, tmp_path / folder, **PERFORMER, max_updates=stop)
                run.fit()
                found.append([tensor for name, tensor in run.model.named_buffers() if name.endswith("projection_RE")])
            return found

        first, third, fourth = projections("resumed", 1, 3, 4)
        (at_once,) = projections("at_once", 4)
        assert not torch.equal(third[0], third[1])
        assert not torch.equal(first[0], third[0])
        assert not torch.equal(third[0], fourth[0])
        assert torch.equal(fourth[0], at_once[0])
        assert torch.equal(fourth[1], at_once[1])


class TestEpoch:
    def test_epoch_trains_on_every_example_once(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, max_updates=0, max_epochs=2, update_freq=3)
        seen: list[int] = []

        def note(module: Any, inputs: Any) -> None:
            if module.training and inputs[0].weight:
                seen.extend(inputs[0].ids_B.tolist())

        run.step.register_forward_pre_hook(note)
        run.fit()
        count = len(run.train_set)
        assert sorted(seen[:count]) == sorted(seen[count:]) == list(range(count))
        assert seen[:count] != seen[count:]

    def test_every_epoch_has_different_batches(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path)
        one, two = (
            [batch.tolist() for batch in epoch_batches(run.train_set.sizes_ND, run.config.batch, seed=1, epoch=epoch)]
            for epoch in (1, 2)
        )
        assert sorted(map(sorted, one)) != sorted(map(sorted, two))

    def test_workers_do_not_change_the_losses(self, tiny_corpus: Path, tmp_path: Path) -> None:
        for workers in (0, 1):
            trainer(tiny_corpus, tmp_path / str(workers), batch__workers=workers).fit()
        assert losses(tmp_path / "0") == losses(tmp_path / "1")

    def test_skipped_examples_are_reported(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, max_updates=1, batch__max_length=12)
        run.fit()
        sizes = run.train_set.sizes_ND.max(axis=1)
        first = int((sizes > 12).nonzero()[0][0]) + 1
        assert f"{(sizes > 12).sum()} examples are too long and skipped: {first}" in capsys.readouterr().err


class TestNotFinite:
    def test_infinite_weight_does_not_replace_the_checkpoint(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=3).fit()
        run = trainer(tiny_corpus, tmp_path, max_updates=6)
        with torch.no_grad():
            run.model.get_parameter("encoder.blocks.0.feed_forward.expand.weight")[0, 0] = float("inf")
        with pytest.raises(
            UserError, match=r"update 4 (.|\n)*examples in the batch: \d+(.|\n)*update 3\. .*optimizer\.lr"
        ):
            run.fit()
        assert (tmp_path / "latest").read_text() == "update_00000003"
        assert finite(model_file.read(tmp_path / "update_00000003").tensors)

    @pytest.mark.parametrize("log_every", [1, 8])
    @pytest.mark.parametrize("optimizer", ["adam", "nag", "adafactor", "muon"])
    def test_state_before_the_failed_update_is_saved(
        self, tiny_corpus: Path, tmp_path: Path, log_every: int, optimizer: str
    ) -> None:
        """The host may detect the failure only at the next log line. The resumed run equals an uninterrupted run."""
        changes = {"log__every": log_every, "optimizer": {"kind": optimizer, "lr": 0.001, "weight_decay": 0.01}}
        trainer(tiny_corpus, tmp_path / "whole", **changes).fit()
        run = trainer(tiny_corpus, tmp_path / "parts", checkpoint__every=100, validation__every=100, **changes)
        parameter = next(iter(run.model.parameters()))
        parameter.register_hook(lambda gradient: gradient * float("nan") if run.state.update == 5 else gradient)
        with pytest.raises(UserError, match=r"update 6 (.|\n)*checkpoint is from update 5\."):
            run.fit()
        again = trainer(tiny_corpus, tmp_path / "parts", **changes)
        assert again.state.update == 5
        again.fit()
        assert losses(tmp_path / "whole") == losses(tmp_path / "parts")

    def test_failure_in_the_first_update_saves_no_checkpoint(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path)
        next(iter(run.model.parameters())).register_hook(lambda gradient: gradient * float("nan"))
        with pytest.raises(UserError, match="no checkpoint"):
            run.fit()
        assert not list(tmp_path.glob("update_*"))

    def test_nan_in_validation_ends_the_run(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, max_updates=4, validation__every=2)

        def spoil(module: Any, inputs: Any) -> None:
            if not module.training:
                next(iter(run.model.parameters())).data.fill_(float("nan"))

        run.step.register_forward_pre_hook(spoil)
        with pytest.raises(UserError, match=r"update 2 has loss=nan, because the weight(.|\n)*optimizer\.lr"):
            run.fit()
        assert run.state.best is None
        assert run.state.pending_validation
        assert not (tmp_path / "best.safetensors").exists()


class TestValidation:
    def test_validation_counts_every_target_once(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path)
        values = []
        for max_tokens in (100, 100000):
            config = replace(run.config, batch=replace(run.config.batch, max_tokens=max_tokens))
            values.append(validate(run.step, run.task, config, engine=run.engine)[0])
        assert values[0]["nll"] == pytest.approx(values[1]["nll"], rel=1e-6)
        dataset = run.task.dataset("valid")
        run.model.eval()
        with torch.no_grad():
            batches = [run.task.collate([dataset[index]]) for index in range(len(dataset))]
            total = sum(float(run.step(batch)[1]["nll"][0]) for batch in batches)
        assert values[0]["nll"] == pytest.approx(total / dataset.sizes_ND[:, 1].sum(), rel=1e-5)

    def test_validation_logs_the_bleu_of_decoded_outputs(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(
            tiny_corpus,
            tmp_path,
            max_updates=2,
            validation__decode=True,
            validation__metric="bleu",
            validation__search__beam=1,
            validation__search__max_length_b=10,
        )
        run.fit()
        line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
        assert 0 <= line["bleu"] <= 100
        assert line["bleu_signature"].startswith("nrefs:1|case:mixed")

    def test_unavailable_metric_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        for metric, fix in {
            "bleu": r"validation\.decode=true",
            "blue": "bleu",
            "bits_per_byte": "bits_per_token, loss, nll, ppl",
            "accuracy": "bits_per_token, loss, nll, ppl",
        }.items():
            with pytest.raises(UserError, match=rf"validation\.metric={metric}(.|\n)*{fix}"):
                trainer(tiny_corpus, tmp_path, validation__metric=metric)

    def test_validation_metrics_selects_the_logged_metrics(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2, validation__metrics=["bits_per_token"]).fit()
        lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
        for line in lines:
            assert {"bits_per_token", "loss"} <= line.keys()
            assert not {"nll", "ppl"} & line.keys()


class TestBestModel:
    def test_last_and_best_checkpoints_are_kept(self, tiny_corpus: Path, tmp_path: Path) -> None:
        kept = {"checkpoint__every": 1, "checkpoint__keep_last": 2, "checkpoint__keep_best": 2}
        run = trainer(tiny_corpus, tmp_path, **kept, validation__every=2)
        run.fit()
        assert [path.name for path in run.checkpoints.folders()] == ["update_00000007", "update_00000008"]
        assert len(list(tmp_path.glob("best_loss_*.safetensors"))) == 2
        values = dict(losses(tmp_path, "valid"))
        assert model_file.read(tmp_path / "best.safetensors").info["loss"] == min(values.values())

    def test_copies_of_checkpoints_and_models_are_kept(self, tiny_corpus: Path, tmp_path: Path) -> None:
        kept = {"checkpoint__every": 1, "checkpoint__keep_last": 1, "checkpoint__keep_best": 2, "validation__every": 1}
        trainer(tiny_corpus, tmp_path, **kept, max_updates=2).fit()
        best = next(tmp_path.glob("best_loss_*"))
        copies = [tmp_path / name for name in ("update_00000002_copy", "best_before_update_of_data.safetensors")]
        copies.append(best.with_stem(f"{best.stem}_copy"))
        shutil.copytree(tmp_path / "update_00000002", copies[0])
        for path in copies[1:]:
            shutil.copy(best, path)
        trainer(tiny_corpus, tmp_path, **kept, max_updates=4).fit()
        assert all(path.exists() for path in copies)
        assert [path.name for path in checkpoint_folders(tmp_path)] == ["update_00000004"]

    def test_keep_best_0_saves_no_best_model(self, tiny_corpus: Path, tmp_path: Path) -> None:
        result = trainer(tiny_corpus, tmp_path, checkpoint__keep_best=0).fit()
        assert not list(tmp_path.glob("best*"))
        assert result.best == min(dict(losses(tmp_path, "valid")).values())
        assert model_file.read(tmp_path).info["update"] == 8

    @pytest.mark.parametrize("higher", [False, True])
    def test_best_models_are_ordered_by_recorded_values(self, tiny_corpus: Path, tmp_path: Path, higher: bool) -> None:
        """The file names have only four decimals, and do not determine the order."""
        run = trainer(tiny_corpus, tmp_path, checkpoint__keep_best=2)
        for update, value in ((1, 0.10001), (2, 0.10003), (3, 0.10002)):
            state = run.state.replace(update=update)
            run.checkpoints.save_best(weights(run), state, {"loss": value}, higher=higher)
        kept = {int(path.stem[-8:]) for path in tmp_path.glob("best_loss_*")}
        assert kept == ({2, 3} if higher else {1, 3})

    def test_patience_count_is_kept_when_resuming(self, tiny_corpus: Path, tmp_path: Path) -> None:
        changes = {"optimizer__lr": 1e-30, "validation__every": 1, "validation__patience": 3, "max_updates": 50}
        whole = trainer(tiny_corpus, tmp_path / "whole", **changes)
        whole.fit()
        assert whole.state.update == 4
        trainer(tiny_corpus, tmp_path / "parts", **{**changes, "max_updates": 2}).fit()
        second = trainer(tiny_corpus, tmp_path / "parts", **changes)
        second.fit()
        assert second.state.update == 4

    def test_keep_best_0_removes_an_outdated_best_model(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=4).fit()
        first = (tmp_path / "best.safetensors").read_bytes()
        worse = trainer(tiny_corpus, tmp_path, checkpoint__keep_best=0, optimizer__lr=1e-30, max_updates=5)
        worse.state = worse.state.replace(best=0.0)
        worse.fit()
        assert (tmp_path / "best.safetensors").read_bytes() == first
        trainer(tiny_corpus, tmp_path / "better", max_updates=4).fit()
        trainer(tiny_corpus, tmp_path / "better", checkpoint__keep_best=0, max_updates=8).fit()
        assert not list((tmp_path / "better").glob("best*"))

    def test_log_names_patience_if_it_ended_the_run(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changes = {"optimizer__lr": 1e-30, "validation__every": 1, "validation__patience": 2, "max_updates": 50}
        trainer(tiny_corpus, tmp_path, **changes).fit()
        printed = capsys.readouterr().err.splitlines()
        assert printed[-2:] == [
            "Stopped by validation.patience=2: no new best loss of valid.",
            f"Finished after update 3. The models are in {tmp_path}.",
        ]

    def test_log_of_a_complete_run_does_not_name_patience(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2, validation__patience=2).fit()
        assert "patience" not in capsys.readouterr().err

    def test_changing_the_metric_resets_the_best_value(self, tiny_corpus: Path, tmp_path: Path) -> None:
        first = trainer(tiny_corpus, tmp_path, max_updates=4, validation__metric="nll")
        first.fit()
        first.checkpoints.save_state(first.state.replace(best=0.0))  # lower than any loss
        second = trainer(tiny_corpus, tmp_path, max_updates=8, validation__metric="loss")
        second.fit()
        assert second.state.best == losses(tmp_path, "valid")[-1][1]
        assert model_file.read(tmp_path / "best.safetensors").info["update"] == 8


class TestConfig:
    def test_run_without_an_end_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"max_updates.*max_epochs"):
            trainer(tiny_corpus, tmp_path, max_updates=0)

    def test_error_about_a_missing_corpus_names_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="seqtk-preprocess here"):
            trainer(tmp_path / "nowhere", tmp_path, task__made_by="seqtk-preprocess here")

    def test_empty_save_dir_is_refused(self, tiny_corpus: Path) -> None:
        with pytest.raises(UserError, match="save_dir="):
            trainer(tiny_corpus, Path(" "))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("optimizer.lr", 0.0),
            ("optimizer.lr", float("inf")),
            ("clip_norm", float("inf")),
            ("schedule.warmup_init_lr", float("nan")),
            ("seed", 2**63),
            ("checkpoint.keep_last", 0),
            ("log.every", 0),
        ],
    )
    def test_invalid_settings_are_refused(self, tiny_corpus: Path, tmp_path: Path, key: str, value: float) -> None:
        with pytest.raises(UserError, match=f"{key}="):
            trainer(tiny_corpus, tmp_path, **{key.replace(".", "__"): value})
