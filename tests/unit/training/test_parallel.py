"""Engines in one process, the choice of the device, and errors about too little memory."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from seqtk.training.ddp import DDPConfig
from seqtk.training.fsdp2 import check_shared
from seqtk.training.parallel import Engine, EngineConfig, engines, local_device, start_engine
from seqtk.training.trainer import Trainer, train
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, tiny_config, trainer


@dataclass(frozen=True)
class CountingConfig(EngineConfig):
    """The config of `CountingEngine`."""


class CountingEngine(Engine):
    """An engine that counts the calls of `full` and `local`, which gather and split tensors."""

    gathered = 0
    split = 0

    def full(self, tensor: torch.Tensor) -> torch.Tensor:
        self.gathered += 1
        return tensor

    def local(self, full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        self.split += 1
        assert full.shape == like.shape
        return full


class TestDevice:
    @pytest.fixture(autouse=True)
    def _gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def test_each_process_uses_its_own_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert local_device("auto") == torch.device("cuda", 1)

    def test_process_with_one_visible_gpu_uses_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("SLURM_LOCALID", "1")
        assert local_device("auto") == torch.device("cuda", 0)

    @pytest.mark.parametrize("device", ["auto", "cuda"])
    def test_more_processes_than_gpus_are_refused(self, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        """A run never mixes GPUs and CPUs. With torchrun in a SLURM job, SLURM_LOCALID is not the local rank."""
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("SLURM_LOCALID", "0")
        with pytest.raises(UserError, match=f"device={device}"):
            local_device(device)


class TestChoice:
    def test_default_engine_uses_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert type(start_engine(device="cpu")) is Engine

    def test_parallel_none_under_torchrun_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match=r"parallel=none(.|\n)*parallel=ddp"):
            start_engine(engines.config_type("none")(), device="cpu")

    @pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
    def test_ddp_and_fsdp2_without_torchrun_use_one_process(self, tiny_corpus: Path, tmp_path: Path, kind: str) -> None:
        trainer(tiny_corpus, tmp_path / "none", max_updates=2).fit()
        config = tiny_config(tiny_corpus, tmp_path / kind, max_updates=2, parallel=kind)
        assert type(start_engine(config.parallel, device="cpu")) is Engine
        assert train(config).update == 2
        assert losses(tmp_path / "none") == losses(tmp_path / kind)

    @pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("0", "two"), ("0", "0")])
    def test_invalid_rank_and_world_size_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, rank: str, size: str
    ) -> None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(UserError, match=f"RANK={rank} and WORLD_SIZE={size}"):
            start_engine(device="cpu")

    def test_blocks_that_share_weights_are_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        run = trainer(tiny_corpus, tmp_path, model__encoder__layers=2)
        first, second = run.model.separate_blocks()[:2]
        check_shared(run.step, [first, second])
        first.feed_forward.expand = second.feed_forward.expand
        with pytest.raises(UserError, match=r"parallel=fsdp2(.|\n)*encoder\.blocks\.0\.feed_forward\.expand\.weight"):
            check_shared(run.step, [first, second])

    def test_missing_gpu_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(UserError, match="device=cuda"):
            start_engine(DDPConfig(), device="cuda")


def test_weights_are_gathered_and_split_by_the_engine(tiny_corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_corpus, tmp_path, max_updates=2)
    first = CountingEngine(CountingConfig(), device="cpu")
    Trainer(config, engine=first).fit()
    weights = len(list((Trainer(config, engine=first)).model.parameters()))
    assert first.gathered >= 3 * weights  # the weights and the two moments of Adam
    second = CountingEngine(CountingConfig(), device="cpu")
    Trainer(config, engine=second)
    assert second.split >= 3 * weights


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried …"),
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            MemoryError(),
        ],
        ids=["cpu", "cuda", "python"],
    )
    def test_out_of_memory_error_suggests_a_smaller_batch(
        self, tiny_corpus: Path, tmp_path: Path, error: Exception
    ) -> None:
        def fail(module: torch.nn.Module, inputs: object) -> None:
            raise error

        handle = torch.nn.modules.module.register_module_forward_pre_hook(fail)
        try:
            with pytest.raises(UserError, match=r"batch\.max_tokens=200") as caught:
                train(tiny_config(tiny_corpus, tmp_path))
        finally:
            handle.remove()
        assert str(caught.value).count("\n") == 2

    def test_other_runtime_errors_are_not_changed(self, tiny_corpus: Path, tmp_path: Path) -> None:
        def fail(module: torch.nn.Module, inputs: object) -> None:
            raise RuntimeError("shapes do not match")

        handle = torch.nn.modules.module.register_module_forward_pre_hook(fail)
        try:
            with pytest.raises(RuntimeError, match="shapes"):
                train(tiny_config(tiny_corpus, tmp_path))
        finally:
            handle.remove()
