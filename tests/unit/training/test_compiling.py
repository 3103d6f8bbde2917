"""Compiled training: equal losses, bit-exact resuming, unchanged parameter names, and fallbacks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtk.attention import Attention, AttentionConfig, Role, State, attentions
from seqtk.checkpoint.model_file import load_tensors
from seqtk.training.non_finite import NotFiniteError
from seqtk.training.trainer import Trainer, train
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, process_state, tiny_config, trainer

STATIC: dict[str, Any] = {"batch__shapes": 1, "validation__split": None, "max_updates": 4}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ for torch.compile")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def tracing() -> Iterator[None]:
    """Makes torch.compile use the backend aot_eager, which generates no code and accepts several graphs."""
    torch.compiler.reset()
    with torch.compiler.set_stance(force_backend="aot_eager"):
        yield


@pytest.fixture
def generating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores generated code in a folder that all tests of the session share."""
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent / "compiled"))


def notes_of(run: Trainer) -> list[str]:
    """Returns a list to which the run appends every line that it prints."""
    lines: list[str] = []
    run.log.info = lines.append  # type: ignore[method-assign]
    return lines


def make_updates(run: Trainer, count: int) -> None:
    while run.state.update < count:
        for update, micro_batches in run._updates():
            run.update(micro_batches)
            run._advance(update)
            if run.state.update == count:
                break


class Unreadable(Attention):
    """A layer that reads a tensor value in Python, so that it cannot be compiled into one graph."""

    roles = Role.ENCODER | Role.CAUSAL

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        return x_BTD * (2.0 if x_BTD.sum().item() > 0 else 1.0), None


@dataclass(frozen=True)
class UnreadableConfig(AttentionConfig):
    """A layer that cannot be compiled."""


@pytest.fixture
def unreadable() -> Iterator[str]:
    attentions.register("unreadable", UnreadableConfig)(Unreadable)
    yield "unreadable"
    attentions._classes.pop(attentions._config_types.pop("unreadable"))


class TestSameTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["step", "blocks"])
    def test_compiled_losses_equal_eager_losses(
        self, tiny_corpus: Path, tmp_path: Path, tracing: None, mode: str
    ) -> None:
        """The run has dropout. On a CPU, compiled and eager training have the same dropout masks."""
        for name, compiled in (("eager", "off"), ("compiled", mode)):
            trainer(tiny_corpus, tmp_path / name, compile=compiled, **STATIC).fit()
        assert [update for update, _ in losses(tmp_path / "compiled")] == [1, 2, 3, 4]
        for (_, eager), (_, compiled) in zip(losses(tmp_path / "eager"), losses(tmp_path / "compiled"), strict=True):
            assert compiled == pytest.approx(eager, abs=1e-6)
        files = [
            load_tensors(tmp_path / name / "update_00000004/model.safetensors")[0] for name in ("eager", "compiled")
        ]
        assert files[0].keys() == files[1].keys()

    @pytest.mark.slow
    @needs_compiler
    @pytest.mark.parametrize("settings", [{"batch__shapes": 2}, {"precision": "bf16"}], ids=str)
    def test_resuming_compiled_training_is_bit_exact(
        self, tiny_corpus: Path, tmp_path: Path, generating: None, settings: dict[str, Any]
    ) -> None:
        config = {**STATIC, **settings, "compile": "step"}
        trainer(tiny_corpus, tmp_path / "whole", **{**config, "max_updates": 6}).fit()
        torch.compiler.reset()
        trainer(tiny_corpus, tmp_path / "halves", **{**config, "max_updates": 3}).fit()
        torch.compiler.reset()
        trainer(tiny_corpus, tmp_path / "halves", **{**config, "max_updates": 6}).fit()
        assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
        whole, halves = (
            load_tensors(tmp_path / name / "update_00000006" / "model.safetensors")[0] for name in ("whole", "halves")
        )
        assert all(torch.equal(whole[name], halves[name]) for name in whole)


class TestGraphs:
    @pytest.mark.slow
    def test_each_shape_is_compiled_once(self, tiny_corpus: Path, tmp_path: Path, tracing: None) -> None:
        run = trainer(tiny_corpus, tmp_path, **{**STATIC, "batch__shapes": 3, "compile": "step", "max_updates": 40})
        notes = notes_of(run)
        make_updates(run, 40)
        assert run.compilation is not None
        run.compilation.report()
        assert [note for note in notes if note.startswith("Compiled 3 shapes in")], notes

    @pytest.mark.slow
    def test_varying_shapes_give_at_most_3_graphs(self, tiny_corpus: Path, tmp_path: Path, tracing: None) -> None:
        run = trainer(tiny_corpus, tmp_path, **{**STATIC, "batch__shapes": None, "compile": "step", "max_updates": 30})
        make_updates(run, 30)
        assert run.compilation is not None
        run.compilation.report()
        assert run.compilation.mode == "step"
        assert 1 <= run.compilation.graphs <= 3

    @pytest.mark.slow
    def test_settings_of_the_compiler_are_restored(
        self, tiny_corpus: Path, tmp_path: Path, tracing: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        before = process_state()
        train(tiny_config(tiny_corpus, tmp_path, compile="blocks", max_updates=1, validation__split=None))
        assert process_state() == before

    def test_non_finite_value_is_located_in_eager_mode(self, tiny_corpus: Path, tmp_path: Path, tracing: None) -> None:
        run = trainer(tiny_corpus, tmp_path, compile="blocks", **STATIC)
        with torch.no_grad():
            run.model.encoder.blocks[0].feed_forward.contract.weight[0, 0] = torch.inf
        with pytest.raises(NotFiniteError, match="feed_forward"):
            run.fit()


class TestBadInput:
    def test_error_names_the_layer_that_cannot_be_compiled(
        self, tiny_corpus: Path, tmp_path: Path, unreadable: str
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, compile="step", model__attention={"kind": unreadable}, **STATIC)
        with pytest.raises(UserError, match=f"compile=step.*{unreadable}.*encoder.*decoder.*{__file__}:") as refused:
            make_updates(run, 1)
        assert len(str(refused.value).splitlines()) <= 3

    def test_error_names_the_model_if_the_layer_has_no_file(
        self, tiny_corpus: Path, tmp_path: Path, unreadable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Unreadable, "__module__", "a module without a file")
        run = trainer(tiny_corpus, tmp_path, compile="step", model__attention={"kind": unreadable}, **STATIC)
        with pytest.raises(UserError, match="compile=step: the model cannot be compiled"):
            make_updates(run, 1)

    def test_compiled_model_raises_its_user_errors(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, compile="step", model__positions="learned", **STATIC)
        run.model.source_embedding.positions.table = torch.nn.Embedding(2, 16)
        with pytest.raises(UserError, match="max_length"):
            make_updates(run, 1)

    @pytest.mark.slow
    def test_run_without_a_compiler_trains_eagerly(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "eager", **STATIC).fit()
        script = (
            "import json, sys; from pathlib import Path; from tests.unit.training.helpers import trainer;"
            "trainer(Path(sys.argv[1]), Path(sys.argv[2]), compile='step', **json.loads(sys.argv[3])).fit()"
        )
        arguments = [str(tiny_corpus), str(tmp_path / "without"), json.dumps(STATIC)]
        environment = {**os.environ, "CXX": "/nonexistent", "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Warning") == 1
        assert losses(tmp_path / "without") == losses(tmp_path / "eager")
