"""Speed figures: floating-point operations, padding, waiting, the table of phases, and profiler traces."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from seqtk.data.plan import padding_share
from seqtk.ops.dispatch import naive_ops
from seqtk.training.flops import GPUS, ModelFlops, peak_tflops
from seqtk.training.profiling import profiled_updates
from seqtk.training.speed import PHASES
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


class TestFlops:
    @pytest.mark.parametrize("heads", [1, 2])
    def test_flops_of_translation_equal_torch_flop_counter(self, tiny_corpus: Path, tmp_path: Path, heads: int) -> None:
        """The rows have equal lengths and no padding, so that torch counts exactly the operations of the model."""
        run = trainer(tiny_corpus, tmp_path, model__heads=heads, model__dim=32, model__share_embeddings="none")
        sizes_ND = run.train_set.sizes_ND
        _, groups = np.unique(sizes_ND, axis=0, return_inverse=True)
        indices = np.flatnonzero(groups.ravel() == np.bincount(groups.ravel()).argmax())
        batch = run.task.collate([run.train_set[index] for index in indices.tolist()])
        with (
            naive_ops(),
            FlopCounterMode(display=False) as counter,
        ):  # the counter does not know all operators of the fast forms
            run.backward([batch])
        assert ModelFlops(run.model).of_update(sizes_ND[indices]) == counter.get_total_flops()

    def test_subquadratic_layers_count_no_attention_products(self, tiny_corpus: Path, tmp_path: Path) -> None:
        softmax = trainer(tiny_corpus, tmp_path / "a")
        linear = trainer(tiny_corpus, tmp_path / "b", model__attention="linear")
        sizes_ND = np.array([[100, 100]])
        difference = ModelFlops(softmax.model).of_update(sizes_ND) - ModelFlops(linear.model).of_update(sizes_ND)
        assert difference == pytest.approx(2 * 12 * 16 * 100**2)


class TestPeak:
    @pytest.mark.parametrize(
        ("gpu", "precision", "peak"),
        [
            ("NVIDIA H200", "bf16", 989.4),
            ("NVIDIA H100 80GB HBM3", "fp32", 66.9),
            ("NVIDIA H100 PCIe", "bf16", 756),
            ("NVIDIA A100-SXM4-80GB", "fp16", 312),
            ("NVIDIA A10", "bf16", 125),
            ("NVIDIA L40S", "bf16", 362.05),
            ("Tesla V100-SXM2-16GB", "fp16", 125),
            ("Tesla V100-SXM2-16GB", "bf16", None),
            ("NVIDIA GeForce GTX 1080", "fp32", None),
        ],
    )
    def test_peak_flops_are_found_by_the_name_of_the_gpu(self, gpu: str, precision: str, peak: float | None) -> None:
        assert peak_tflops(gpu, precision) == peak

    def test_peak_flops_are_higher_in_half_precision(self) -> None:
        assert all(fp16 > fp32 > 0 for _, fp16, fp32 in GPUS.values())


class TestLog:
    def test_log_lines_have_padding_and_waiting(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, log__peak_tflops=1e-3, log__every=4)
        plan, sizes_ND = run.plan(), run.train_set.sizes_ND
        run.fit()
        first, second = lines_of(tmp_path)
        assert first["padding"] == pytest.approx(padding_share(plan[:4], sizes_ND))
        assert 0 <= second["waiting"] < 1
        assert second["mfu"] > 0

    def test_mfu_is_not_logged_without_a_known_peak(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2).fit()
        assert all("mfu" not in line for line in lines_of(tmp_path))

    def test_resumed_run_logs_a_complete_interval(self, tiny_corpus: Path, tmp_path: Path) -> None:
        changes = {"log__every": 4, "checkpoint__every": 1, "log__peak_tflops": 1.0}
        trainer(tiny_corpus, tmp_path / "whole", max_updates=4, **changes).fit()
        run = trainer(tiny_corpus, tmp_path / "cut", max_updates=4, **changes)
        for number, (update, micro_batches) in enumerate(run._updates()):
            run.update(micro_batches)
            run._advance(update)
            if number == 1:
                run.save()
                break
        trainer(tiny_corpus, tmp_path / "cut", max_updates=4, **changes).fit()
        (whole,), (cut,) = lines_of(tmp_path / "whole"), lines_of(tmp_path / "cut")
        assert whole["padding"] == cut["padding"]

    def test_time_in_each_phase_is_printed_at_the_end(
        self, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=2).fit()
        shown = capsys.readouterr().err
        assert all(f"\n  {phase} " in shown for phase in PHASES)


class TestProfile:
    def test_trace_has_the_chosen_updates(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=4, profile="2:3").fit()
        events = json.loads((tmp_path / "profile_2-3.json").read_text())["traceEvents"]
        assert sum(event.get("name", "").startswith("Optimizer.step") for event in events) == 2
        assert not list(tmp_path.glob(".*partial*"))

    def test_run_that_ends_early_writes_its_trace(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, max_updates=3, profile="2:9").fit()
        assert (tmp_path / "profile_2-9.json").is_file()

    @pytest.mark.parametrize("text", ["", "5", "0:2", "3:2", "-1:2", "1:2:3", "a:b", "1:1000", "1.5:2", ":", "²:³"])
    def test_invalid_profile_settings_are_refused(self, text: str) -> None:
        with pytest.raises(UserError, match="profile="):
            profiled_updates(text)

    def test_profiling_does_not_change_losses(self, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path / "a", max_updates=3).fit()
        trainer(tiny_corpus, tmp_path / "b", max_updates=3, profile="1:2").fit()
        assert [x["loss"] for x in lines_of(tmp_path / "a")] == [x["loss"] for x in lines_of(tmp_path / "b")]


def test_message_about_unknown_gpu_names_log_peak_tflops(tiny_corpus: Path, tmp_path: Path) -> None:
    speed = trainer(tiny_corpus, tmp_path).speed
    assert speed.lines() == []
    speed.gpu = "NVIDIA Nothing 1"
    (line,) = speed.lines()
    assert "log.peak_tflops" in line
