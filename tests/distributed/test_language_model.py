"""Training a language model with two gloo processes equals training in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training.helpers import byte_corpus, losses
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "task=language_modeling",
    "task.tokens_per_sample=32",
    "model=transformer_lm",
    "model.dim=16",
    "model.ffn_dim=32",
    "model.heads=2",
    "model.layers=3",
    "model.dropout=0",
    "criterion=cross_entropy",
    "device=cpu",
    "threads=1",
    "max_updates=8",
    "batch.max_tokens=128",
    "schedule.warmup_updates=4",
    "optimizer.lr=0.01",
    "validation.every=4",
    "log.every=1",
    "log.tensorboard=false",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a data-bin of one kilobyte of text, tokenized into bytes."""
    folder = tmp_path_factory.mktemp("text")
    train = "".join(f"line {number} of {number**2}\n" for number in range(60))
    return byte_corpus(folder, train=train, valid="line 61 of 3721\n")


def train(processes: int, corpus: str, save_dir: Path, *extra: str) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(torchrun if processes > 1 else []), "seqtk.cli.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, *ARGUMENTS, f"task.data={corpus}", f"save_dir={save_dir}", *extra],
        text=True, capture_output=True, timeout=PATIENCE, env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("extra", [(), ("model.adaptive={cutoffs:[90,200]}",)], ids=["plain", "adaptive"])
def test_losses_equal_the_losses_of_one_process(corpus: str, tmp_path: Path, extra: tuple[str, ...]) -> None:
    """The adaptive head has a last cluster without targets, because no byte of the text has an id of 200 or more."""
    train(1, corpus, tmp_path / "one", "update_freq=2", *extra)
    train(2, corpus, tmp_path / "two", *extra)
    for kind in ("train", "valid"):
        one, two = losses(tmp_path / "one", kind), losses(tmp_path / "two", kind)
        assert [update for update, _ in one] == [update for update, _ in two]
        assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-4)


def test_processes_may_drop_different_layers(corpus: str, tmp_path: Path) -> None:
    train(2, corpus, tmp_path, "model.layer_drop=0.5")
    assert len(losses(tmp_path)) == 8


STREAMS = [
    "batch.streams=6",
    "checkpoint.every=3",
    "max_updates=16",
]
"""The settings of streams. An epoch has nine updates."""
TRANSFORMER_XL = [*STREAMS, "model.positions=none", "attention=transformer_xl", "attention.memory_length=40"]
SIZES = ["model.dim=16", "model.ffn_dim=32", "model.heads=2", "model.layers=2", "model.dropout=0"]
TOKENS = [*STREAMS, "model=recurrent_memory_lm", *SIZES, "model.segment_length=16", "max_updates=4"]


def test_streams_resume_with_a_different_process_count(corpus: str, tmp_path: Path) -> None:
    train(1, corpus, tmp_path / "one", *TRANSFORMER_XL)
    train(2, corpus, tmp_path / "two", *TRANSFORMER_XL, "max_updates=4")
    train(1, corpus, tmp_path / "two", *TRANSFORMER_XL, "update_freq=3", "max_updates=12")
    train(2, corpus, tmp_path / "two", *TRANSFORMER_XL)
    for kind, count in (("train", 16), ("valid", 4)):
        one, two = losses(tmp_path / "one", kind), losses(tmp_path / "two", kind)
        assert [update for update, _ in one] == [update for update, _ in two]
        assert len(one) == count
        assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-5)


def test_memory_tokens_train_as_in_one_process(corpus: str, tmp_path: Path) -> None:
    train(1, corpus, tmp_path / "one", *TOKENS)
    train(2, corpus, tmp_path / "two", *TOKENS)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 4
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-5)
