"""The loop: one update however it is cut, exact resuming, stopping, and what is kept."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import tensors_of
from seqtk.checkpoint.run_state import Checkpoints
from seqtk.data.plan import epoch_batches
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.tasks.translation import TranslationConfig, TranslationTask
from seqtk.training.run import run as run_training
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validate
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, tiny_config, trainer


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(run.model).items()}


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("cut", [2, 3, 8])
def test_one_update_is_the_same_however_its_batch_is_cut(tiny_corpus: Path, tmp_path: Path, cut: int) -> None:
    examples = list(range(24))
    results = []
    for pieces in (1, cut):
        run = trainer(tiny_corpus, tmp_path / str(pieces), model__dropout=0.0)
        size = len(examples) // pieces
        parts = [examples[start : start + size] for start in range(0, len(examples), size)]
        figures = run.update([run.task.collate([run.train_set[index] for index in part]) for part in parts])
        results.append((figures["norm"], figures["loss"], torch.cat([t.flatten() for t in weights(run).values()])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)
    # Adam divides by the root of a gradient's square: compare where the gradient is not rounding alone.
    assert torch.allclose(results[0][2], results[1][2], atol=2e-3)
    assert (results[0][2] - results[1][2]).abs().mean() < 1e-6


def test_a_batch_as_empty_changes_nothing(tiny_corpus: Path, tmp_path: Path) -> None:
    results = []
    for extra in (False, True):
        run = trainer(tiny_corpus, tmp_path / str(extra), model__dropout=0.0)
        batch = run.task.collate([run.train_set[index] for index in range(8)])
        run.update([batch, batch.as_empty()] if extra else [batch])
        results.append(weights(run))
    for name, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][name], atol=1e-7), name


@pytest.mark.parametrize("stop_after", [3, 4, 7])
def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(
    tiny_corpus: Path, tmp_path: Path, stop_after: int
) -> None:
    whole = trainer(tiny_corpus, tmp_path / "whole", max_updates=12)
    whole.fit()
    first = trainer(tiny_corpus, tmp_path / "parts", max_updates=12, checkpoint__every=1)
    update = first.update

    def interrupt(micro_batches: Any) -> dict[str, float]:
        if first.state.update == stop_after - 1:
            signal.raise_signal(signal.SIGTERM)
        return update(micro_batches)

    first.update = interrupt  # type: ignore[method-assign]
    assert first.fit() == signal.SIGTERM
    assert first.state.update == stop_after
    second = trainer(tiny_corpus, tmp_path / "parts", max_updates=12)
    assert second.state.update == stop_after
    assert second.fit() == 0
    assert_equal_weights(weights(whole), weights(second))
    for kind in ("train", "valid"):
        assert losses(tmp_path / "whole", kind) == losses(tmp_path / "parts", kind)


def test_a_killed_run_goes_on_from_its_last_checkpoint_with_the_same_losses(tiny_corpus: Path, tmp_path: Path) -> None:
    whole = trainer(tiny_corpus, tmp_path / "whole")
    whole.fit()
    killed = trainer(tiny_corpus, tmp_path / "killed")
    update = killed.update

    def die(micro_batches: Any) -> dict[str, float]:
        if killed.state.update == 5:  # the last checkpoint is of update 4; update 5 has been logged
            raise RuntimeError("killed")
        return update(micro_batches)

    killed.update = die  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        killed.fit()
    again = trainer(tiny_corpus, tmp_path / "killed")
    assert again.state.update == 4
    again.fit()
    assert_equal_weights(weights(whole), weights(again))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_a_finished_run_has_nothing_left_to_do(tiny_corpus: Path, tmp_path: Path) -> None:
    first = trainer(tiny_corpus, tmp_path)
    first.fit()
    again = trainer(tiny_corpus, tmp_path)
    again.fit()
    assert again.state.update == 8
    assert_equal_weights(weights(first), weights(again))


def test_every_example_is_trained_on_once_an_epoch(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path, max_updates=0, max_epochs=2, update_freq=3)
    seen: list[int] = []
    update = run.update

    def note(micro_batches: Any) -> dict[str, float]:
        seen.extend(index for batch in micro_batches if batch.weight for index in batch.ids_B.tolist())
        return update(micro_batches)

    run.update = note  # type: ignore[method-assign]
    run.fit()
    count = len(run.train_set)
    assert sorted(seen[:count]) == sorted(seen[count:]) == list(range(count))
    assert seen[:count] != seen[count:]


def test_training_with_an_infinite_weight_says_where_and_keeps_the_checkpoint(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=3).fit()
    run = trainer(tiny_corpus, tmp_path, max_updates=6)
    with torch.no_grad():
        run.model.get_parameter("encoder.blocks.0.feed_forward.expand.weight")[0, 0] = float("inf")
    with pytest.raises(
        UserError, match=r"update 4 is not finite, first in (.|\n)*training examples: \d+(.|\n)*update 3"
    ):
        run.fit()
    assert (tmp_path / "latest").read_text() == "update_00000003"
    tensors = model_file.read(tmp_path / "update_00000003").tensors
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_patience_counts_across_a_resume(tiny_corpus: Path, tmp_path: Path) -> None:
    changes = {"optimizer__lr": 0.0, "validation__every": 1, "validation__patience": 3, "max_updates": 50}
    whole = trainer(tiny_corpus, tmp_path / "whole", **changes)
    whole.fit()
    assert whole.state.update == 4
    first = trainer(tiny_corpus, tmp_path / "parts", **{**changes, "max_updates": 2})
    first.fit()
    second = trainer(tiny_corpus, tmp_path / "parts", **changes)
    second.fit()
    assert second.state.update == 4


def test_only_the_last_checkpoints_and_the_best_models_are_kept(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(
        tiny_corpus,
        tmp_path,
        checkpoint__every=1,
        checkpoint__keep_last=2,
        checkpoint__keep_best=2,
        validation__every=2,
    )
    run.fit()
    assert [path.name for path in run.checkpoints.folders()] == ["update_00000007", "update_00000008"]
    best = sorted(tmp_path.glob("best_loss_*.safetensors"))
    assert len(best) == 2
    figures = dict(losses(tmp_path, "valid"))
    assert model_file.read(tmp_path / "best.safetensors").info["loss"] == min(figures.values())


@pytest.mark.parametrize(("key", "value"), [("model__dim", 32), ("seed", 2), ("batch__max_tokens", 500)])
def test_a_run_of_another_config_is_not_resumed(tiny_corpus: Path, tmp_path: Path, key: str, value: int) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=1).fit()
    with pytest.raises(UserError, match=f"another {key.replace('__', '.')}: .* then, {value} now"):
        trainer(tiny_corpus, tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"attention": "luna"},
            [
                "another model.encoder.self_attention: 'softmax' then, 'luna' now.",
                "Also other: model.decoder.self_attention.",
            ],
        ),
        (
            {"attention": ["softmax", "luna"], "model__encoder__layers": 2, "model__decoder__layers": 2, "seed": 2},
            ["another seed: 1 then, 2 now.", "Also other: model.encoder.layers, model.encoder.self_attention, "],
        ),
        ({"model__encoder__self_attention__dropout": 0.5}, ["another model.encoder.self_attention.dropout: 0.0 then"]),
    ],
)
def test_only_what_differs_is_told(
    tiny_corpus: Path, tmp_path: Path, changes: dict[str, Any], lines: list[str]
) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=1).fit()
    with pytest.raises(UserError) as raised:
        trainer(tiny_corpus, tmp_path, **changes)
    said = str(raised.value).splitlines()
    assert len(said) == len(lines) + 1
    assert all(part in line for part, line in zip(lines, said, strict=False))
    assert said[-1].endswith("or another save_dir to start anew.")
    assert max(map(len, said)) < 250


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_answered_with_another(tiny_corpus: Path, tmp_path: Path, damaged: str) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=2, checkpoint__every=1).fit()
    path = tmp_path / "update_00000002" / damaged
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"{damaged} is (.|\n)*Write update_00000001 into .*latest") as raised:
        trainer(tiny_corpus, tmp_path)
    assert str(raised.value).count("\n") < 3
    (tmp_path / "latest").write_text("update_00000001")
    assert trainer(tiny_corpus, tmp_path).state.update == 1
    (tmp_path / "latest").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="There are: update_00000001, update_00000002"):
        trainer(tiny_corpus, tmp_path)
    (tmp_path / "latest").write_text("\n")
    with pytest.raises(UserError, match="latest names nothing, which is not a checkpoint"):
        trainer(tiny_corpus, tmp_path)


def test_another_metric_starts_with_no_best(tiny_corpus: Path, tmp_path: Path) -> None:
    first = trainer(tiny_corpus, tmp_path, max_updates=4, validation__metric="nll")
    first.fit()
    first.state = first.state.after(best=0.0)  # a best that no loss can reach, as a BLEU of 0 would be
    first.checkpoints.save(first.model, first.optimizer, first.state, first.task)
    second = trainer(tiny_corpus, tmp_path, max_updates=8, validation__metric="loss")
    second.fit()
    assert second.state.best == losses(tmp_path, "valid")[-1][1]
    assert model_file.read(tmp_path / "best.safetensors").info["update"] == 8


def test_a_loss_that_is_no_number_is_never_the_best(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path, max_updates=1)
    with torch.no_grad():
        next(iter(run.model.parameters())).fill_(float("nan"))
    run.update = lambda micro_batches: {"weight": 1.0, "norm": 0.0, "loss": 1.0, "nll": 1.0}  # type: ignore[method-assign]
    run.fit()
    assert run.state.best is None


def test_another_optimizer_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=1).fit()
    with pytest.raises(UserError, match="another optimizer: 'adam' then, 'sgd' now"):
        trainer(tiny_corpus, tmp_path, optimizer="sgd")


def test_a_corpus_that_moved_is_the_same_and_another_vocabulary_is_not(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path / "run", max_updates=1).fit()
    moved = shutil.copytree(tiny_corpus, tmp_path / "moved")
    assert trainer(moved, tmp_path / "run").state.update == 1
    lines = (moved / "dict.de.txt").read_text().splitlines()
    for lang in ("en", "de"):
        (moved / f"dict.{lang}.txt").write_text("\n".join([*lines[:-1], "other 1"]) + "\n")
    with pytest.raises(UserError, match="other vocabularies"):
        trainer(moved, tmp_path / "run")


def test_one_save_dir_serves_one_run(tiny_corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_corpus, tmp_path, max_updates=1)
    with Checkpoints(config).locked(), pytest.raises(UserError, match="Another run is writing"):
        run_training(config)
    assert run_training(config) == 0


def test_a_line_end_inside_a_reference_keeps_the_lines_in_step(tmp_path: Path) -> None:
    text = ["one\rtwo three", "four five six", "seven"]
    for split in ("train", "valid"):
        for lang in ("en", "de"):
            (tmp_path / f"{split}.{lang}").write_bytes(("\n".join(text * 20) + "\n").encode())
    preprocess(
        PreprocessConfig(
            source_lang="en",
            target_lang="de",
            train=str(tmp_path / "train"),
            valid=(str(tmp_path / "valid"),),
            destdir=str(tmp_path / "bin"),
            vocab_size=40,
        )
    )
    dataset = TranslationTask(TranslationConfig(data=str(tmp_path / "bin"))).dataset("valid")
    assert dataset.target_lines is not None
    assert [line.split("\r")[-1] for line in dataset.target_lines[:3]] == ["two three", "four five six", "seven"]
    assert len(dataset.target_lines) == len(dataset) == 60


def test_a_limit_may_change_on_resuming(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=2).fit()
    run = trainer(tiny_corpus, tmp_path, max_updates=4, update_freq=2, log__every=2)
    run.fit()
    assert run.state.update == 4


def test_validation_counts_every_target_once(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path)
    figures = []
    for max_tokens in (100, 100000):
        config = replace(run.config, batch=replace(run.config.batch, max_tokens=max_tokens))
        figures.append(validate(run.objective, run.task, config, world=run.world)[0])
    assert figures[0]["nll"] == pytest.approx(figures[1]["nll"], rel=1e-6)
    dataset = run.task.dataset("valid")
    run.model.eval()
    with torch.no_grad():
        batches = [run.task.collate([dataset[index]]) for index in range(len(dataset))]
        total = sum(float(run.objective(batch)[1]["nll"][0]) for batch in batches)
    assert figures[0]["nll"] == pytest.approx(total / dataset.sizes_ND[:, 1].sum(), rel=1e-5)


def test_validation_decodes_and_scores(tiny_corpus: Path, tmp_path: Path) -> None:
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


def test_a_metric_that_is_not_there_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    for metric, fix in {
        "bleu": r"validation\.decode=true",
        "blue": "bleu",
        "bits_per_byte": "bits_per_token, loss, nll, ppl",
        "accuracy": "bits_per_token, loss, nll, ppl",
    }.items():
        with pytest.raises(UserError, match=rf"validation\.metric={metric}(.|\n)*{fix}"):
            trainer(tiny_corpus, tmp_path, validation__metric=metric)


def test_validation_metrics_choose_what_is_reported(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, max_updates=2, validation__metrics=["bits_per_token"]).fit()
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    for line in lines:
        assert {"bits_per_token", "loss"} <= line.keys()
        assert not {"nll", "ppl"} & line.keys()


def test_a_run_without_an_end_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_updates or max_epochs"):
        trainer(tiny_corpus, tmp_path, max_updates=0)


def test_a_missing_corpus_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="This command makes it:\nseqtk-preprocess here"):
        trainer(tmp_path / "nowhere", tmp_path, task__made_by="seqtk-preprocess here")


def test_too_long_examples_are_counted_and_named(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tiny_corpus, tmp_path, max_updates=1, batch__max_length=12)
    run.fit()
    sizes = run.train_set.sizes_ND.max(axis=1)
    first = int((sizes > 12).nonzero()[0][0])
    assert f"{(sizes > 12).sum()} examples are too long and left out: {first}" in capsys.readouterr().err


def test_epochs_differ_in_their_batches(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path)
    one, two = (
        [batch.tolist() for batch in epoch_batches(run.train_set.sizes_ND, run.config.batch, seed=1, epoch=epoch)]
        for epoch in (1, 2)
    )
    assert sorted(map(sorted, one)) != sorted(map(sorted, two))


def test_random_features_are_redrawn_by_the_update_alone(tiny_corpus: Path, tmp_path: Path) -> None:
    """Each layer's differ from each other's and from those before; a run that was resumed has the same."""
    performer = {"kind": "performer", "redraw_every": 2}

    def projections(folder: str, *stops: int) -> list[list[torch.Tensor]]:
        found = []
        for stop in stops:
            run = trainer(tiny_corpus, tmp_path / folder, model__attention=performer, max_updates=stop)
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
