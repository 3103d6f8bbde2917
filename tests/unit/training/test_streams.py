"""Training on contiguous streams with recurrent state: bit-exact resuming, update_freq, validation and errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint import model_file
from seqtk.data.batch import LanguageBatch
from seqtk.data.streams import stream_rows
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validate
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import byte_corpus, losses, spoil, text_trainer, tiny_config
from tools.count_host_reads import count_host_reads

MODEL: dict[str, Any] = {"kind": "transformer_lm", "dim": 16, "ffn_dim": 32, "heads": 2, "layers": 2}
MEMORIES: dict[str, dict[str, Any]] = {
    "transformer_xl": MODEL | {"positions": "none", "attention": {"kind": "transformer_xl", "memory_length": 12}},
    "with layer drop": MODEL
    | {"positions": "none", "layer_drop": 0.4, "attention": {"kind": "transformer_xl", "memory_length": 12}},
    "memory tokens": MODEL | {"kind": "recurrent_memory_lm", "segment_length": 8, "memory_tokens": 2},
    "no memory": MODEL,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """About 660 bytes: with 6 streams and 16 tokens per sample, an epoch has 7 updates, the last with fewer rows."""
    folder = tmp_path_factory.mktemp("text")
    train, valid = (
        "".join(f"{number} and {number**2}; " for number in numbers) for numbers in (range(50), range(20, 30))
    )
    return byte_corpus(folder, train=train, valid=valid)


def trainer(corpus: str, save_dir: Path, memory: str = "transformer_xl", **changes: Any) -> Trainer:
    return text_trainer(corpus, save_dir, model=MEMORIES[memory], batch={"streams": 6}, **changes)


@pytest.mark.parametrize("memory", MEMORIES)
def test_resumed_run_equals_uninterrupted_run(memory: str, corpus: str, tmp_path: Path) -> None:
    """The run is interrupted within an epoch, at its end, and in the next epoch."""
    whole = trainer(corpus, tmp_path / "whole", memory)
    assert len(whole.train_set) % 6 > 0
    assert -(-len(whole.train_set) // 6) == 7
    whole.fit()
    for updates in (3, 7, 8, 9):
        trainer(corpus, tmp_path / "parts", memory, max_updates=updates).fit()
    one, other = (model_file.read(tmp_path / name / "update_00000009").tensors for name in ("whole", "parts"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_run_of_version_0_1_0_resumes(corpus: str, tmp_path: Path) -> None:
    trainer(corpus, tmp_path / "whole").fit()
    trainer(corpus, tmp_path / "old", max_updates=3).fit()
    folder = tmp_path / "old" / "update_00000003"
    (folder / "stream_state.safetensors").rename(folder / "carried.safetensors")
    state = json.loads((folder / "state.json").read_text())
    del state["files"], state["crc32"]
    (folder / "state.json").write_text(json.dumps(state))
    trainer(corpus, tmp_path / "old").fit()
    assert losses(tmp_path / "whole") == losses(tmp_path / "old")


@pytest.mark.parametrize("memory", ["transformer_xl", "memory tokens"])
def test_run_resumes_with_a_different_update_freq(memory: str, corpus: str, tmp_path: Path) -> None:
    changes = {"model__dropout": 0.0}
    trainer(corpus, tmp_path / "whole", memory, **changes).fit()
    trainer(corpus, tmp_path / "parts", memory, **changes, update_freq=4, max_updates=3).fit()
    trainer(corpus, tmp_path / "parts", memory, **changes, update_freq=3).fit()
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len(parts) == 9
    assert [loss for _, loss in parts] == pytest.approx([loss for _, loss in whole], rel=1e-5)
    assert parts[3][1] == pytest.approx(whole[3][1], rel=1e-6)


@pytest.mark.parametrize("memory", ["transformer_xl", "memory tokens"])
def test_full_memory_needs_no_copies_to_the_host(memory: str, corpus: str, tmp_path: Path) -> None:
    run = trainer(corpus, tmp_path, memory)
    batch = run.task.collate([run.train_set[index] for index in stream_rows(len(run.train_set), 6)[1]])
    run.update([batch])
    run.update([batch])
    assert count_host_reads(lambda: run.update([batch])) == 0


@pytest.mark.parametrize("at", [0, 3, 6], ids=["without state", "full", "fewer rows"])
@pytest.mark.parametrize(
    ("memory", "optimizer"), [("transformer_xl", "adam"), ("memory tokens", "adam"), ("transformer_xl", "muon")]
)
def test_skipped_update_does_not_change_the_state(
    memory: str, optimizer: str, at: int, corpus: str, tmp_path: Path
) -> None:
    """The result is the same if the failure is read only at the next log line."""
    for log_every in (1, 9):
        folder = tmp_path / str(log_every)
        changes = {"log__every": log_every, "checkpoint__every": 100, "validation__every": 100}
        kind = {"kind": optimizer, "lr": 0.01}
        run = trainer(corpus, folder, memory, non_finite="skip", max_updates=8, optimizer=kind, **changes)
        name, _ = next(run.model.attention_layers())
        spoil(run, at=at, module=name)
        run.fit()
    one, other = (model_file.read(tmp_path / name / "update_00000008").tensors for name in ("1", "9"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert [update for update, _ in losses(tmp_path / "1")] == [n for n in range(1, 9) if n != at + 1]


@pytest.mark.parametrize("memory", ["transformer_xl", "memory tokens"])
def test_new_epoch_clears_the_state(memory: str, corpus: str, tmp_path: Path) -> None:
    """At a tiny learning rate, both epochs start with the same losses. Losses without recurrent state differ."""
    run = trainer(corpus, tmp_path / "run", memory, optimizer__lr=1e-30, model__dropout=0.0)
    run.fit()
    logged = [loss for _, loss in losses(tmp_path / "run")]
    assert logged[7:] == logged[:2]
    rows = stream_rows(len(run.train_set), 6)
    with torch.no_grad():
        alone = [run.task.collate([run.train_set[index] for index in update]) for update in rows]
        nll = [float(run.step(batch)[1]["nll"][0]) / batch.weight for batch in alone]
    assert logged[0] == pytest.approx(nll[0], rel=1e-6)
    assert all(abs(one - other) > 1e-4 for one, other in zip(logged[1:7], nll[1:], strict=True))


def test_streams_with_full_memory_equal_one_long_sample(corpus: str, tmp_path: Path) -> None:
    """The memory of the layers includes all earlier tokens. The validation is computed in float64."""
    changes = {"batch__streams": 1, "model__attention__memory_length": 500}
    run = trainer(corpus, tmp_path / "run", **changes)
    run.step.double()
    figures, _ = validate(run.step, run.task, run.config, engine=run.engine)
    items = run.task.dataset("valid").items  # type: ignore[attr-defined]
    ids = items.stream(0, items.total)
    target_BT = torch.from_numpy(ids)[None]
    previous_BT = torch.cat([torch.full((1, 1), 2), target_BT[:, :-1]], dim=1)
    with torch.no_grad():
        whole = run.step(LanguageBatch(torch.tensor([0]), len(ids), previous_BT, target_BT))[1]
    assert len(ids) > 100
    assert figures["nll"] == pytest.approx(float(whole["nll"][0]) / len(ids), rel=1e-10)
    assert "bits_per_byte" in figures


def test_run_with_empty_micro_batches_reads_all_targets(corpus: str, tmp_path: Path) -> None:
    run = trainer(corpus, tmp_path, update_freq=6)
    assert run.fit().signal == 0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    weights = [line["tokens_per_update"] for line in lines if line["kind"] == "train"]
    assert sum(weights[:7]) == run.task.dataset("train").sizes_ND.sum()
    assert weights[6] < weights[0] == 6 * 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task__break_mode": "eos"}, r"task\.break_mode=none"),
        ({"update_freq": 7}, "streams=6 cannot be split into 7 micro-batches"),
        ({"batch__streams": 0}, r"batch\.streams=0"),
        ({"batch__streams": 38}, r"streams=38 (.|\n)*Set batch.streams to 19 or less"),
        ({"model__positions": "sinusoidal"}, r"[Ss]et model\.positions=none"),
        ({"batch__max_length": 20}, r"batch\.max_length"),
    ],
)
def test_invalid_stream_settings_are_refused(changes: dict[str, Any], words: str, corpus: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        trainer(corpus, tmp_path, **changes)


def test_streams_for_translation_are_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch\.streams(.|\n)*break_mode"):
        Trainer(tiny_config(tiny_corpus, tmp_path, batch__streams=2), engine=start_engine(device="cpu"))


def test_damaged_stream_state_is_refused(corpus: str, tmp_path: Path) -> None:
    trainer(corpus, tmp_path, max_updates=2).fit()
    path = tmp_path / "update_00000002" / "stream_state.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"stream_state\.safetensors"):
        trainer(corpus, tmp_path)


def test_failed_update_saves_the_state_before_it(corpus: str, tmp_path: Path) -> None:
    trainer(corpus, tmp_path / "whole").fit()
    run = trainer(corpus, tmp_path / "parts", checkpoint__every=100)
    parameter = next(iter(run.model.parameters()))
    parameter.register_hook(lambda gradient: gradient * float("nan") if run.state.update == 6 else gradient)
    with pytest.raises(UserError, match=r"The last checkpoint is from update 6\."):
        run.fit()
    trainer(corpus, tmp_path / "parts").fit()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
