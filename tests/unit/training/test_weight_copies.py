"""Low-precision copies of the weights: gradients are near autocast, and copies are updated with the weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seqtk.criterions.cross_entropy import CrossEntropy, CrossEntropyConfig
from seqtk.data.batch import TranslationBatch
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.models.transformer import Transformer, TransformerConfig
from seqtk.optim import optimizers
from seqtk.optim.adafactor import AdafactorConfig
from seqtk.optim.adam import AdamConfig
from seqtk.optim.base import OptimizerConfig
from seqtk.optim.sgd import SGDConfig
from seqtk.training.parallel import TrainStep
from seqtk.training.precision import WeightCopies

V = 20
CONFIG = TransformerConfig(
    dim=16, ffn_dim=24, heads=2, dropout=0.0, encoder=EncoderConfig(layers=2), decoder=DecoderConfig(layers=2)
)


def step() -> TrainStep:
    torch.manual_seed(0)
    model = Transformer(CONFIG, source_vocabulary=V, target_vocabulary=V)
    return TrainStep(model, CrossEntropy(CrossEntropyConfig()), autocast=torch.bfloat16).train()


def batch() -> TranslationBatch:
    tokens = torch.arange(4, V)[None].expand(2, -1).contiguous()
    return TranslationBatch(torch.arange(2), tokens.numel(), tokens, tokens, tokens)


def gradients(step: TrainStep) -> dict[str, Tensor | None]:
    step.zero_grad(set_to_none=True)
    step(batch())[0].backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in step.named_parameters()}


def test_model_without_linear_layers_of_seqtk_has_no_copies() -> None:
    model = nn.Linear(2, 2)
    copies, optimizer = WeightCopies(model, torch.bfloat16), torch.optim.SGD(model.parameters())
    before = model.weight.clone()
    for _ in range(2):
        with copies.in_use():
            model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert not torch.equal(model.weight, before)


def test_gradients_of_copies_are_near_autocast() -> None:
    ours, plain = step(), step()
    plain.copies = None
    found, expected = gradients(ours), gradients(plain)
    for name, gradient in expected.items():
        assert gradient is not None
        assert found[name] is not None
        torch.testing.assert_close(found[name], gradient, atol=0.02 * float(gradient.abs().max()), rtol=0.05)
        assert found[name].dtype == torch.float32  # type: ignore[union-attr]


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    ours = step()
    once = gradients(ours)
    ours(batch())[0].backward()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, 2 * once[name])  # type: ignore[arg-type, operator]


def test_frozen_weights_get_no_gradient() -> None:
    ours = step()
    key = ours.model.get_submodule("encoder.blocks.0.self_attention.key")
    key.requires_grad_(False)
    found = gradients(ours)
    frozen = {name for name, gradient in found.items() if gradient is None}
    assert frozen == {f"model.encoder.blocks.0.self_attention.key.{name}" for name in ("weight", "bias")}


@pytest.mark.parametrize("config", [AdamConfig(), SGDConfig(), AdafactorConfig()], ids=["adam", "sgd", "adafactor"])
def test_next_update_uses_the_new_weights(config: OptimizerConfig) -> None:
    ours = step()
    optimizer = optimizers.build(config, ours.model)
    gradients(ours)
    optimizer.step()
    again = step()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(ours(batch())[0], again(batch())[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: setattr(weight, "data", 2 * weight.data),
    ],
    ids=["in place", "another tensor"],
)
def test_copies_reflect_changes_outside_the_optimizer(change: Callable[[nn.Parameter], object]) -> None:
    ours = step()
    before = ours(batch())[0]
    with torch.no_grad():
        change(ours.model.get_parameter("decoder.blocks.0.feed_forward.expand.weight"))
    assert not torch.equal(ours(batch())[0], before)


def test_weight_copies_are_removed_after_a_step() -> None:
    ours = step()
    ours(batch())
    assert all(getattr(module, "copies", None) is None for module in ours.model.modules())
