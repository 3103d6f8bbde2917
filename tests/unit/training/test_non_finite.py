"""Losses, gradients and metrics that are not finite: the module named in the error, replay files, skipped updates."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqtk.checkpoint.model_file import load_tensors, save_tensors
from seqtk.cli.train import main
from seqtk.training.replay import read_replay
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import MODULE, losses, spoil, trainer

EXAMPLES = r"examples in the batch: \d+(, \d+)*"


class TestOrigin:
    @pytest.mark.parametrize("log_every", [1, 4])
    @pytest.mark.parametrize(
        ("how", "words"), [("forward", f"the output of {MODULE}"), ("backward", f"gradient of the output of {MODULE}")]
    )
    def test_error_names_the_update_module_and_examples(
        self, tiny_corpus: Path, tmp_path: Path, how: str, words: str, log_every: int
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, log__every=log_every, checkpoint__every=8)
        spoil(run, at=2, how=how)
        with pytest.raises(UserError, match=rf"update 3 is not finite, first in {how_part(words)}(.|\n)*{EXAMPLES}"):
            run.fit()
        assert run.state.update == 2

    def test_error_names_examples_of_the_failing_micro_batch(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, update_freq=3)
        batches: list[list[int]] = []

        def poison(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output * math.nan if len(batches) % 3 == 2 else output

        run.step.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].ids_B.tolist()))
        run.model.get_submodule(MODULE).register_forward_hook(poison)
        with pytest.raises(UserError, match="update 1") as caught:
            run.fit()
        assert f"examples in the batch: {', '.join(str(index + 1) for index in batches[1])}." in str(caught.value)

    def test_error_names_a_weight_that_is_not_finite(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path)
        run.model.get_parameter(f"{MODULE}.bias").data[0] = math.inf
        with pytest.raises(UserError, match=rf"because the weight {MODULE}\.bias"):
            run.fit()
        assert not list(tmp_path.glob("update_*"))

    def test_infinite_attention_masks_are_not_reported(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path)
        layer = run.model.get_submodule("encoder.blocks.0")
        layer.register_module("mask", nn.Identity())
        masked = torch.full((3,), -math.inf)
        layer.register_forward_pre_hook(lambda module, _: module.mask(masked).shape and None)
        spoil(run, at=0)
        with pytest.raises(UserError, match=rf"first in the output of {MODULE}"):
            run.fit()


def how_part(words: str) -> str:
    return f"the {words}" if words.startswith("gradient") else words


def diverge(corpus: Path, folder: Path, **changes: Any) -> str:
    """Trains with a learning rate that gives infinite activations, and returns the error."""
    with pytest.raises(UserError) as caught:
        trainer(corpus, folder, optimizer__lr=1e30, schedule="constant", **changes).fit()
    return str(caught.value)


@pytest.fixture(scope="module")
def diverged(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diverged") / "run"
    diverge(tiny_corpus, folder, checkpoint__every=1)
    return folder


class TestReplay:
    def test_replay_reproduces_the_failure(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = diverge(tiny_corpus, tmp_path, validation__every=100)
        place = error.partition(" is not finite, ")[2].splitlines()[0]
        examples = error.partition("examples in the batch: ")[2].partition(". To")[0]
        capsys.readouterr()
        main([f"replay={tmp_path / 'replay.safetensors'}", "device=cpu"])
        printed = capsys.readouterr().out
        assert f"is not finite, {place}" in printed
        assert f"Examples: {examples}." in printed

    def test_replay_needs_no_corpus(self, tiny_corpus: Path, tmp_path: Path) -> None:
        diverge(tiny_corpus, tmp_path, task__made_by="gone", validation__every=100)
        failure, contents = read_replay(str(tmp_path / "replay.safetensors"))
        assert failure.training
        assert failure.update == contents.info["update"] > 0
        assert [type(batch).__name__ for ((batch, _),) in failure.ranks] == ["TranslationBatch"]

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["replay={here}/none"], "replay="),
            (["replay={here}"], "is not a file"),
            (["recipe=demo", "init_from={here}/replay.safetensors"], "seqtk-train replay="),
            (["replay={here}/update_00000001/model.safetensors"], "replay="),
            (["replay={here}/replay.safetensors", "optimizer.lr=3"], "optimizer.lr="),
            (["replay={here}/replay.safetensors", "recipe=demo"], "recipe= has no effect"),
            (["attention=linear", "replay={here}/replay.safetensors"], "attention= has no effect"),
            (["replay={here}/replay.safetensors", "++seed=1"], "seed= has no effect"),
        ],
    )
    def test_invalid_replay_arguments_are_refused(
        self, run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            main([argument.format(here=run) for argument in arguments])
        printed = capsys.readouterr().err
        assert named in printed
        assert printed.count("\n") <= 3

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("config", "model"), {}),
            (("config", "task"), None),
            (("assets",), ["text"]),
            (("assets", "source.dict"), 3),
            (("info",), 3),
            (("info", "replay"), {}),
            (("info", "replay", "update"), -1),
            (("info", "replay", "update"), math.inf),
            (("info", "replay", "scale"), None),
            (("info", "replay", "ranks"), [[{}]]),
            (("info", "replay", "ranks", 0, 0, "kind"), "Batch"),
            (("info", "replay", "ranks", 0, 0, "tensors"), 3),
            (("info", "replay", "ranks", 0, 0, "tensors", "source_BS"), None),
            (("info", "replay", "ranks", 0, 0, "tensors", "source_BS"), "0"),
            (("info", "replay", "ranks", 0, 0, "others"), {"weight": "1"}),
        ],
    )
    def test_replay_files_with_invalid_values_are_refused(
        self, run: Path, capsys: pytest.CaptureFixture[str], place: tuple[Any, ...], value: Any
    ) -> None:
        """The checksums of the files are correct, as if another program had written them."""
        file = run / "replay.safetensors"
        tensors, metadata = load_tensors(file)
        tree: Any = metadata
        for key in place[:-1]:
            tree = tree[key]
        tree[place[-1]] = value
        save_tensors(file, tensors, metadata)
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            main([f"replay={file}", "device=cpu"])
        printed = capsys.readouterr().err
        assert printed.startswith("seqtk-train: ")
        assert printed.count("\n") <= 3

    @pytest.fixture
    def run(self, diverged: Path, tmp_path: Path) -> Path:
        shutil.copytree(diverged, tmp_path, dirs_exist_ok=True)
        return tmp_path


def test_failed_update_does_not_change_random_features(tiny_corpus: Path, tmp_path: Path) -> None:
    """The saved checkpoint has the state before the failed update, including all buffers."""
    changes: dict[str, Any] = {"attention": {"kind": "performer", "redraw_every": 1}, "validation__every": 100}
    spoilt, short = (
        trainer(tiny_corpus, tmp_path / str(updates), max_updates=updates, **changes) for updates in (8, 3)
    )
    spoil(spoilt, at=3)
    with pytest.raises(UserError, match="update 4 is not finite"):
        spoilt.fit()
    short.fit()
    for name, tensor in short.model.state_dict().items():
        assert torch.equal(tensor, spoilt.model.state_dict()[name]), name


class TestSkip:
    @pytest.mark.parametrize("optimizer", ["adam", "muon"])
    def test_only_the_update_that_failed_is_skipped(self, tiny_corpus: Path, tmp_path: Path, optimizer: str) -> None:
        """The result is the same if the host detects the failure only at the next log line."""
        runs = []
        for log_every in (1, 8):
            folder = tmp_path / str(log_every)
            changes = {"log__every": log_every, "checkpoint__every": 100, "validation__every": 100}
            run = trainer(tiny_corpus, folder, non_finite="skip", optimizer={"kind": optimizer, "lr": 0.01}, **changes)
            spoil(run, at=3)
            assert run.fit().update == 8
            runs.append(run)
        for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
            assert torch.equal(one, other)
        assert [update for update, _ in losses(tmp_path / "1")] == [1, 2, 3, 5, 6, 7, 8]

    def test_skipped_update_is_logged(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, non_finite="skip", log__every=8)
        spoil(run, at=3)
        run.fit()
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Skipped"))
        assert "update 4 is not finite" in line
        assert str(tmp_path / "replay.safetensors") in line

    def test_exceeding_max_skips_ends_the_run(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, non_finite="skip", max_skips=2, log__every=8)
        for update in (3, 4, 5):
            spoil(run, at=update)
        with pytest.raises(UserError, match=r"max_skips=2(.|\n)*update 6 is not finite"):
            run.fit()

    @pytest.mark.parametrize(("bad", "ends"), [(4, True), (8, False)])
    def test_only_the_last_validation_must_be_finite(
        self, tiny_corpus: Path, tmp_path: Path, bad: int, ends: bool
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, non_finite="skip")
        spoil(run, at=bad, training=False)
        if ends:
            assert run.fit().best == losses(tmp_path, "valid")[-1][1]
        else:
            with pytest.raises(
                UserError, match=rf"validation of update 8 has loss=nan, first in the output of {MODULE}"
            ):
                run.fit()
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        logged = [json.loads(line, parse_constant=pytest.fail) for line in lines]
        assert [line["update"] for line in logged if line["loss"] is None] == [bad]


class TestValidation:
    def test_validation_error_names_module_and_examples(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path)
        spoil(run, at=4, training=False)
        with pytest.raises(UserError, match=rf"loss=nan, first in the output of {MODULE}\.\n(?i:{EXAMPLES})"):
            run.fit()
        failure, _ = read_replay(str(tmp_path / "replay.safetensors"))
        assert not failure.training

    def test_diverged_run_ends_with_an_error(self, tiny_corpus: Path, tmp_path: Path) -> None:
        error = diverge(tiny_corpus, tmp_path, max_updates=1, schedule__warmup_updates=0)
        assert "validation of update 1" in error
        assert not (tmp_path / "best.safetensors").exists()


def test_weights_that_overflow_are_not_saved(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path, checkpoint__every=1, validation__every=100)
    step: Callable[..., Any] = run.optimizer.step

    def overflow(*given: Any) -> None:
        step(*given)
        if run.state.update == 2:
            next(iter(run.model.parameters())).data.fill_(math.inf)

    run.optimizer.step = overflow  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"not finite after update 3(.|\n)*update 2\. .*optimizer\.lr"):
        run.fit()
    assert (tmp_path / "latest").read_text() == "update_00000002"
