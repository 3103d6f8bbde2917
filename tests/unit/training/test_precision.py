"""Training in float16 with loss scaling, and deterministic operators."""

from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint.restore import load_checkpoint
from seqtk.training.loss_scale import GROWTH_EVERY, INITIAL, SMALLEST, LossScale
from seqtk.training.trainer import Trainer, train
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, tiny_config, trainer

YES, NO = torch.tensor(True), torch.tensor(False)


def overflow(run: Trainer, *updates: int, optimizer: str = "adam") -> None:
    """Makes the gradient of these updates infinite, like a loss scale that is too large for float16."""
    parameter = next(iter(run.model.parameters()))
    parameter.register_hook(lambda gradient: gradient / 0 if run.state.update in updates else gradient)


class TestLossScale:
    def test_scale_halves_after_an_overflow(self) -> None:
        scale = LossScale(device=torch.device("cpu"))
        assert scale.is_overflow(loss=YES, gradient=NO)
        scale.update(made=NO, overflow=YES)
        assert float(scale.scale) == INITIAL / 2

    def test_scale_doubles_after_many_updates(self) -> None:
        scale = LossScale(device=torch.device("cpu"), saved={"scale": 8.0, "updates": GROWTH_EVERY - 1})
        scale.update(made=YES, overflow=NO)
        assert scale.values.tolist() == [16.0, 0.0]

    @pytest.mark.parametrize(("loss", "scale"), [(NO, INITIAL), (YES, SMALLEST)])
    def test_lower_scale_is_not_tried_if_it_cannot_help(self, loss: torch.Tensor, scale: float) -> None:
        """The loss is not finite, or the scale has its smallest value."""
        state = LossScale(device=torch.device("cpu"), saved={"scale": scale})
        assert not state.is_overflow(loss=loss, gradient=NO)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_other_precisions_have_no_loss_scale(self, tiny_corpus: Path, tmp_path: Path, precision: str) -> None:
        assert trainer(tiny_corpus, tmp_path, precision=precision).loss_scale is None


class TestFloat16:
    @pytest.mark.parametrize("optimizer", ["adam", "muon"])
    @pytest.mark.parametrize("log_every", [1, 8])
    def test_overflow_skips_one_update(self, tiny_corpus: Path, tmp_path: Path, optimizer: str, log_every: int) -> None:
        kind = {"kind": optimizer, "lr": 0.01}
        run = trainer(tiny_corpus, tmp_path, precision="fp16", optimizer=kind, log__every=log_every)
        overflow(run, 2, 3)
        assert run.fit().update == 8
        assert run.state.loss_scale == {"scale": INITIAL / 4, "updates": 4.0}
        assert not (tmp_path / "replay.safetensors").exists()

    def test_resumed_run_keeps_its_loss_scale(self, tiny_corpus: Path, tmp_path: Path) -> None:
        changes: dict[str, Any] = {"precision": "fp16", "clip_norm": 0.5, "checkpoint__every": 8}
        for folder, stops in (("whole", (8,)), ("parts", (3, 5, 8))):
            for stop in stops:
                run = trainer(tiny_corpus, tmp_path / folder, **changes, max_updates=stop)
                overflow(run, 1, 4)
                run.fit()
        whole, parts = (load_checkpoint(tmp_path / folder / "update_00000008") for folder in ("whole", "parts"))
        assert whole.state.loss_scale == parts.state.loss_scale == {"scale": INITIAL / 4, "updates": 3.0}
        for one, other in ((whole.model.tensors, parts.model.tensors), (whole.optimizer, parts.optimizer)):
            assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []

    def test_float16_losses_are_near_float32(self, tiny_corpus: Path, tmp_path: Path) -> None:
        for precision in ("fp32", "fp16"):
            trainer(tiny_corpus, tmp_path / precision, precision=precision, model__dropout=0.0).fit()
        one, other = (dict(losses(tmp_path / precision)) for precision in ("fp32", "fp16"))
        assert one != other
        assert other == pytest.approx(one, rel=0.01)

    def test_overflow_does_not_redraw_random_features(self, tiny_corpus: Path, tmp_path: Path) -> None:
        changes: dict[str, Any] = {"attention": {"kind": "performer", "redraw_every": 3}, "precision": "fp16"}
        runs = [trainer(tiny_corpus, tmp_path / str(n), max_updates=n, **changes) for n in (2, 3, 4)]
        overflow(runs[1], 2)
        for run in runs:
            run.fit()
        features = [dict(run.model.named_buffers()) for run in runs]
        names = [name for name in features[0] if name.endswith("projection_RE")]
        assert all(torch.equal(features[0][name], features[1][name]) for name in names)
        assert not any(torch.equal(features[1][name], features[2][name]) for name in names)

    def test_repeated_overflow_ends_the_run(self, tiny_corpus: Path, tmp_path: Path) -> None:
        changes = {"validation__every": 100, "checkpoint__every": 100, "max_updates": 60, "log__every": 7}
        run = trainer(tiny_corpus, tmp_path, precision="fp16", **changes)
        overflow(run, *range(5, 60))
        with pytest.raises(UserError, match=r"update 31 is not finite, first in the gradient"):
            run.fit()
        assert run.state.loss_scale["scale"] == SMALLEST


class TestDeterministic:
    def test_deterministic_mode_is_set_during_the_run_only(self, tiny_corpus: Path, tmp_path: Path) -> None:
        seen: list[bool] = []
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
        )
        try:
            train(tiny_config(tiny_corpus, tmp_path, max_updates=1, deterministic=True))
        finally:
            handle.remove()
        assert seen
        assert all(seen)
        assert not torch.are_deterministic_algorithms_enabled()

    def test_nondeterministic_operator_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        def scatter(*_: Any) -> None:
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

        handle = torch.nn.modules.module.register_module_forward_pre_hook(scatter)
        try:
            with pytest.raises(UserError, match=r"deterministic=true: put_(.|\n)*deterministic=false"):
                train(tiny_config(tiny_corpus, tmp_path, max_updates=1, deterministic=True))
        finally:
            handle.remove()
