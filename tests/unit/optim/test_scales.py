"""`freeze`, `lr_scales` and `layer_decay`: freezing weights and scaling learning rates by name and by layer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint.model_file import tensors_of
from seqtk.config import schema
from seqtk.data.batch import TranslationBatch
from seqtk.models import Model, ModelConfig, build_model
from seqtk.optim import OptimizerConfig, RateScale, freeze, optimizers, rate_scales, scale_rates, set_rate
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import losses, trainer


def tiny(layers: int = 2) -> Model:
    tree = {"kind": "transformer", "dim": 8, "ffn_dim": 16, "heads": 2, "pre_norm": True}
    tree |= {"encoder": {"layers": layers}, "decoder": {"layers": 1}}
    return build_model(schema.from_dict(ModelConfig, tree), TranslationBatch, source_vocabulary=9, target_vocabulary=9)


class TestFreeze:
    def test_module_name_freezes_all_its_weights(self) -> None:
        model = tiny()
        freeze(model, ["encoder"])
        assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"encoder"}

    def test_wildcards_freeze_matching_weights(self) -> None:
        model = tiny()
        freeze(model, ["encoder.blocks.[0]", "*.norm.bias"])
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert all(name.startswith("encoder.blocks.0.") or name.endswith(".norm.bias") for name in frozen)
        assert "encoder.blocks.0.feed_forward.expand.weight" in frozen
        assert "decoder.norm.bias" in frozen

    def test_shared_weight_is_frozen_by_any_of_its_names(self) -> None:
        model = tiny()
        freeze(model, ["head"])
        assert not model.get_parameter("source_embedding.tokens.weight").requires_grad

    @pytest.mark.parametrize(
        ("patterns", "words"),
        [(["encodr"], "Did you mean 'encoder'"), (["*"], "freezes all weights"), ([""], "freeze=")],
    )
    def test_invalid_freeze_patterns_are_refused(self, patterns: list[str], words: str) -> None:
        with pytest.raises(UserError, match=words):
            freeze(tiny(), patterns)


class TestScales:
    def test_last_matching_scale_applies(self) -> None:
        factors = rate_scales(tiny(), [RateScale("encoder", 0.5), RateScale("encoder.blocks.1", 0.25)])
        assert factors["encoder.blocks.0.self_attention.out.bias"] == 0.5
        assert factors["encoder.blocks.1.self_attention.out.bias"] == 0.25
        assert factors["decoder.norm.bias"] == 1

    def test_layer_decay_decreases_from_the_last_block(self) -> None:
        factors = rate_scales(tiny(layers=3), [], layer_decay=0.5)
        blocks = [factors[f"encoder.blocks.{number}.self_attention.out.bias"] for number in range(3)]
        assert blocks == [0.125, 0.25, 0.5]
        assert factors["decoder.blocks.0.self_attention.out.bias"] == 0.5
        assert factors["encoder.norm.bias"] == factors["decoder.norm.bias"] == 1
        assert factors["source_embedding.tokens.weight"] == 0.0625

    def test_scale_and_layer_decay_are_multiplied(self) -> None:
        factors = rate_scales(tiny(), [RateScale("source_embedding", 2.0)], layer_decay=0.5)
        assert factors["source_embedding.tokens.weight"] == 0.25

    def test_scale_of_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"lr_scales\.name=decode"):
            rate_scales(tiny(), [RateScale("decode", 0.5)])

    def test_name_without_a_scale_is_refused(self) -> None:
        with pytest.raises(UserError, match="encoder has no scale"):
            rate_scales(tiny(), [RateScale("encoder")])

    def test_layer_decay_without_blocks_is_refused(self) -> None:
        with pytest.raises(UserError, match="layer_decay"):
            rate_scales(torch.nn.Linear(2, 2), [], layer_decay=0.5)

    @pytest.mark.parametrize("kind", list(optimizers))
    def test_every_optimizer_applies_the_scales(self, kind: str) -> None:
        model, config = tiny(), schema.from_dict(OptimizerConfig, {"kind": kind, "weight_decay": 0.0})
        freeze(model, ["decoder"])
        optimizer = optimizers.build(config, model)
        scale_rates(optimizer, model, rate_scales(model, [RateScale("encoder", 1e-12)]))
        set_rate(optimizer, 0.1)
        before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        for name, tensor in tensors_of(model).items():
            change = (tensor - before[name]).abs().max()
            assert (change > 1e-4) if name.startswith("source") else (change < 1e-8), name


@pytest.mark.parametrize("kind", ["adam", "muon", "adafactor"])
def test_resuming_with_scales_is_bit_exact(kind: str, tiny_corpus: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "optimizer": {"kind": kind},
        "freeze": ["target_embedding", "*.norm"],
        "lr_scales": [{"name": "decoder", "scale": 0.5}],
        "layer_decay": 0.7,
    }
    trainer(tiny_corpus, tmp_path / "whole", **changes).fit()
    trainer(tiny_corpus, tmp_path / "parts", **changes, max_updates=5).fit()
    trainer(tiny_corpus, tmp_path / "parts", **changes).fit()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_resumed_run_may_unfreeze_weights(tiny_corpus: Path, tmp_path: Path) -> None:
    trainer(tiny_corpus, tmp_path, freeze=["encoder"], max_updates=3).fit()
    run = trainer(tiny_corpus, tmp_path, max_updates=6)
    before = run.model.get_parameter("encoder.blocks.0.self_attention.out.weight").clone()
    run.fit()
    assert not torch.equal(run.model.get_parameter("encoder.blocks.0.self_attention.out.weight"), before)
