"""Training with static shapes: unchanged losses and gradients, bit-exact resuming, and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqtk.attention import Role, attentions
from seqtk.checkpoint import model_file
from seqtk.config import schema
from seqtk.data.batch import Batch
from seqtk.data.loader import load_updates
from seqtk.data.plan import Position
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.training.config import TrainConfig
from seqtk.training.dry_run import dry_run
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.utils.errors import UserError
from tests.unit.tasks.labelled import write_pairs, write_texts
from tests.unit.training.helpers import losses

SIZES: dict[str, Any] = {"dim": 16, "ffn_dim": 32, "heads": 2, "dropout": 0.0}
ENCODER: dict[str, Any] = SIZES | {"encoder": {"layers": 1}}
CLASSIFIER: dict[str, Any] = {"kind": "transformer_classifier", **ENCODER}
LM: dict[str, Any] = {"kind": "transformer_lm", **SIZES, "layers": 2}
TRANSLATION: dict[str, Any] = {
    "task": {"kind": "translation"},
    "model": {"kind": "transformer", **ENCODER, "decoder": {"layers": 1}},
}
LANGUAGE: dict[str, Any] = {"task": {"kind": "language_modeling", "break_mode": "eos"}, "model": LM}
MASKED: dict[str, Any] = {
    "task": {"kind": "masked_lm", "break_mode": "eos"},
    "model": {"kind": "transformer_masked_lm", **ENCODER},
}
CLASSES: dict[str, Any] = {"task": {"kind": "classification", "source": "labelled_lines"}, "model": CLASSIFIER}
MATCHING: dict[str, Any] = {"task": {"kind": "matching", "source": "labelled_pairs"}, "model": CLASSIFIER}
STREAMS: dict[str, Any] = {
    "task": {"kind": "language_modeling", "tokens_per_sample": 16},
    "model": LM | {"positions": "none", "attention": {"kind": "transformer_xl", "memory_length": 12}},
    "batch": {"streams": 5, "shapes": 2},
}
RUNS: dict[str, dict[str, Any]] = {
    "translation": TRANSLATION,
    "language": LANGUAGE,
    "language in blocks": LANGUAGE | {"task": {"kind": "language_modeling", "tokens_per_sample": 20}},
    "masked": MASKED,
    "classes": CLASSES,
    "weighted classes": CLASSES | {"task": CLASSES["task"] | {"class_weights": [1.0, 2.0, 0.5], "pool": "max"}},
    "matching": MATCHING | {"task": MATCHING["task"] | {"pool": "cls"}},
    "streams": STREAMS,
}
COMMON = ("softmax", "synthesizer_mixture", "luna", "sinkhorn", "fnet", "transformer_xl")
"""Layers tested without `-m slow`."""


@pytest.fixture(scope="module")
def corpora(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(1)
    for split, lines in (("train", 120), ("valid", 20)):
        rows = (random.integers(0, 30, size=random.integers(1, 15)) for _ in range(lines))
        (folder / split).write_text("".join(" ".join(f"w{word}" for word in row) + "\n" for row in rows))
    text, train = str(folder / "text"), str(folder / "train")
    preprocess(PreprocessConfig(tokens="words", train=train, valid=(f"{folder}/valid",), destdir=text, workers=1))
    return {
        "translation": str(tiny_corpus),
        "language_modeling": text,
        "masked_lm": text,
        "classification": str(write_texts(folder / "texts", train=100, test=10)),
        "matching": str(write_pairs(folder / "pairs", train=100, test=10)),
    }


def trainer(run: dict[str, Any], corpora: dict[str, str], save_dir: Path, **changes: Any) -> Trainer:
    kind = run["task"]["kind"]
    tree: dict[str, Any] = {
        "device": "cpu",
        "save_dir": str(save_dir),
        "max_updates": 12,
        "batch": {"max_tokens": 200, "shapes": 5},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_updates": 4},
        "checkpoint": {"every": 4},
        "validation": {"every": 0, "metric": "loss"},
        "log": {"every": 1, "tensorboard": False},
    }
    tree |= run | {"task": run["task"] | {"data": corpora[kind]}}
    config = schema.from_dict(TrainConfig, tree)
    for key, value in changes.items():
        config = schema.update(config, key.replace("__", "."), value)
    return Trainer(config, engine=start_engine(device="cpu"))


def sums_and_gradients(run: Trainer, batches: list[Batch]) -> tuple[dict[str, float], Tensor]:
    run.optimizer.zero_grad(set_to_none=True)
    weight, sums, _ = run.backward(batches)
    gradients = [p.grad.flatten() for p in run.model.parameters() if p.grad is not None]
    return {"weight": weight, **{name: float(value) for name, value in sums.items()}}, torch.cat(gradients)


def check_equal_losses(run: Trainer, *, updates: int) -> None:
    """Compares losses and gradients with and without static shapes, and checks that some shapes differ."""
    has_filled, has_padded = False, False
    plan = run.plan()
    chosen = sorted(plan, key=lambda update: sum(shape.rows for shape in update.shapes) - len(update.indices[0]))  # type: ignore[arg-type]
    chosen = [*chosen[: updates // 2], *chosen[-(updates - updates // 2) :]]
    for update, filled in load_updates(chosen, run.train_set, run.task.collate):
        assert [(len(batch.ids_B), batch.target.shape[1:]) for batch in filled] == [
            (shape.rows, shape.lengths[len(shape.lengths) - batch.target.ndim + 1 :])
            for shape, batch in zip(update.shapes, filled, strict=True)
        ]
        plain = [
            run.task.collate([run.train_set[index] for index in indices.tolist()])
            for indices in update.indices
            if indices is not None
        ]
        states = list(run.streams.states) if run.streams else []
        sums, gradient = sums_and_gradients(run, plain)
        if run.streams:
            run.streams.states = states
        same_sums, same_gradient = sums_and_gradients(run, filled)
        assert same_sums == pytest.approx(sums, rel=1e-6)
        assert float((same_gradient - gradient).abs().max()) <= 1e-6 * float(gradient.norm())
        has_filled |= any(batch.fillers > 0 for batch in filled)
        has_padded |= any(one.target.shape[-1] < two.target.shape[-1] for one, two in zip(plain, filled, strict=True))
    assert has_filled or has_padded


class TestEqualLosses:
    @pytest.mark.parametrize("name", RUNS)
    def test_static_shapes_do_not_change_losses_of_any_task(
        self, name: str, corpora: dict[str, str], tmp_path: Path
    ) -> None:
        check_equal_losses(trainer(RUNS[name], corpora, tmp_path), updates=6)

    @pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=[] if kind in COMMON else pytest.mark.slow) for kind in attentions]
    )
    def test_static_shapes_do_not_change_losses_of_any_layer(
        self, kind: str, corpora: dict[str, str], tmp_path: Path
    ) -> None:
        roles = attentions.class_of(attentions.config_type(kind)).roles
        if Role.CAUSAL in roles:
            more = {"model__positions": "none"} if kind == "transformer_xl" else {}
            check_equal_losses(trainer(LANGUAGE, corpora, tmp_path, attention=kind, **more), updates=2)
        if Role.ENCODER in roles:
            check_equal_losses(trainer(MASKED, corpora, tmp_path, attention=kind), updates=2)
        if Role.CROSS in roles:
            cross = {"model__decoder__cross_attention": kind}
            check_equal_losses(trainer(TRANSLATION, corpora, tmp_path, **cross), updates=2)


class TestResume:
    @pytest.mark.parametrize("name", ["translation", "streams"])
    def test_resumed_run_equals_uninterrupted_run(self, name: str, corpora: dict[str, str], tmp_path: Path) -> None:
        """The run has dropout, and is interrupted within the first and the second epoch."""
        trainer(RUNS[name], corpora, tmp_path / "whole", model__dropout=0.1).fit()
        for updates in (3, 7, 12):
            trainer(RUNS[name], corpora, tmp_path / "parts", model__dropout=0.1, max_updates=updates).fit()
        one, other = (model_file.read(tmp_path / name / "update_00000012").tensors for name in ("whole", "parts"))
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        assert losses(tmp_path / "whole") == losses(tmp_path / "parts")

    @pytest.mark.parametrize("changes", [{"update_freq": 3}, {"batch__shapes": 3}, {"batch__shapes": None}])
    def test_epoch_is_complete_after_a_change_of_settings(
        self, changes: dict[str, Any], corpora: dict[str, str], tmp_path: Path
    ) -> None:
        """The number of targets that the log counts in the first epoch equals the number in the corpus."""
        first = trainer(RUNS["translation"], corpora, tmp_path, max_updates=2, **changes)
        targets = int(first.train_set.sizes_ND[:, 1].sum())
        first.fit()
        trainer(RUNS["translation"], corpora, tmp_path, max_updates=0, max_epochs=1).fit()
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert sum(line["tokens_per_update"] for line in lines if line["kind"] == "train") == targets


def test_all_epochs_of_a_mix_have_the_same_shapes(corpora: dict[str, str], tmp_path: Path) -> None:
    """An epoch reads a tenth of the corpus, which rarely includes the longest example."""
    mix = [{"data": corpora["translation"], "weight": 0.1}]
    run = trainer(TRANSLATION, corpora, tmp_path, task__mix=mix)
    assert max(run.shapes[-1].lengths) > run.train_set.sizes_ND.max()
    for epoch in range(1, 11):
        run.state = run.state.replace(position=Position(epoch))
        assert {shape for update in run.plan() for shape in update.shapes} <= set(run.shapes)


class TestMessages:
    def test_dry_run_prints_shapes_and_padding(self, corpora: dict[str, str], tmp_path: Path) -> None:
        lines = list(dry_run(trainer(RUNS["language"], corpora, tmp_path).config))
        assert any(line.startswith("5 shapes, padding ") and line.endswith("% of the positions.") for line in lines)
        lines = list(dry_run(trainer(RUNS["language"], corpora, tmp_path, batch__shapes=None).config))
        assert any(line.startswith("Padding: ") for line in lines)

    def test_fewer_shapes_than_requested_are_reported(self, corpora: dict[str, str], tmp_path: Path) -> None:
        lines = list(dry_run(trainer(RUNS["language"], corpora, tmp_path, batch__shapes=99).config))
        assert any("(fewer than batch.shapes=99, " in line for line in lines)

    def test_batch_shapes_0_is_refused(self, corpora: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"batch\.shapes=0"):
            trainer(RUNS["language"], corpora, tmp_path, batch__shapes=0)

    def test_streams_of_two_sizes_require_two_shapes(self, corpora: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"batch\.shapes=2, or batch\.streams to a multiple of 2"):
            trainer(STREAMS, corpora, tmp_path, update_freq=2, batch__shapes=1)
        assert trainer(STREAMS, corpora, tmp_path, update_freq=2).fit().update == 12
