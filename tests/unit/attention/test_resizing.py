"""A resized layer gives the same outputs for inputs that fit both lengths."""

from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from seqtk.attention import Attention, AttentionConfig, Role, attentions
from seqtk.attention.cosformer import CosformerConfig
from seqtk.attention.linformer import LinformerConfig
from seqtk.attention.mixture import SynthesizerMixtureConfig
from seqtk.attention.resizing import Resizable, resize_configs, resize_tensor
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.synthesizer import SynthesizerFactorizedDenseConfig, SynthesizerRandomConfig
from seqtk.config.schema import from_dict
from seqtk.utils.errors import UserError

DIM, OLD = 8, 10
EVERY_SOURCE = ("dot", "dense", "random", "fixed_random", "factorized_dense", "factorized_random")


def build(config: AttentionConfig, role: Role) -> Attention:
    layer = attentions.build(config, dim=DIM, role=role).double().eval()
    for tensor in layer.state_dict().values():
        torch.nn.init.normal_(tensor, std=0.6)
    return layer


def resized(layer: Attention, config: AttentionConfig) -> Attention:
    new = build(config, layer.role)
    tensors = new.state_dict()
    new.load_state_dict({name: resize_tensor(old, new=tensors[name]) for name, old in layer.state_dict().items()})
    return new


RESIZABLE = [
    (kind, role)
    for kind in attentions
    for role in Role
    if issubclass(attentions.class_of(attentions.config_type(kind)), Resizable)
    and role in attentions.class_of(attentions.config_type(kind)).roles
]


@pytest.mark.parametrize("max_length", [1, 4, 6, 9, 11, 17, 40])
@pytest.mark.parametrize(("kind", "role"), RESIZABLE, ids=[f"{kind}-{role.name}" for kind, role in RESIZABLE])
def test_resized_layer_has_the_same_outputs(kind: str, role: Role, max_length: int) -> None:
    has_heads = "heads" in {field.name for field in fields(attentions.config_type(kind))}
    settings: dict[str, Any] = {"max_length": OLD} | ({"heads": 2} if has_heads else {})
    if kind == "synthesizer_mixture":
        settings["parts"] = EVERY_SOURCE
    config = from_dict(attentions.config_type(kind), settings)
    layer = build(config, role)
    new = resized(layer, resize_configs(config, max_length=max_length))
    assert new.max_length == max_length
    length = min(OLD, max_length)
    x_BTD, memory_BSM = torch.randn(2, 2, length, DIM, dtype=torch.float64)
    memory = memory_BSM if role is Role.CROSS else None
    torch.testing.assert_close(new(x_BTD, memory)[0], layer(x_BTD, memory)[0], atol=1e-10, rtol=1e-10)
    back = resized(new, resize_configs(new.config, max_length=OLD))
    torch.testing.assert_close(back(x_BTD, memory)[0], layer(x_BTD, memory)[0], atol=1e-10, rtol=1e-10)


def test_added_elements_come_from_the_new_layer() -> None:
    old, new = torch.zeros(2, 3, 3), torch.randn(2, 5, 5)
    grown = resize_tensor(old, new=new)
    assert not grown[:, :3, :3].any()
    torch.testing.assert_close(grown[:, 3:], new[:, 3:])
    torch.testing.assert_close(grown[:, :, 3:], new[:, :, 3:])
    torch.testing.assert_close(resize_tensor(new, new=old), new[:, :3, :3])
    assert resize_tensor(old.half(), new=new).dtype is torch.float16


@dataclass(frozen=True)
class Stack:
    layers: tuple[AttentionConfig, ...] = ()
    cross: AttentionConfig = SoftmaxConfig()
    max_length: int = 77


def test_only_attention_configs_are_resized() -> None:
    stack = Stack((SynthesizerRandomConfig(max_length=5), SoftmaxConfig(heads=3)), LinformerConfig(rank=2))
    assert resize_configs(stack, max_length=9) == Stack(
        (SynthesizerRandomConfig(max_length=9), SoftmaxConfig(heads=3)), LinformerConfig(rank=2, max_length=9)
    )


def test_resizing_keeps_the_length_of_the_fine_factor() -> None:
    for config in (SynthesizerFactorizedDenseConfig(), SynthesizerMixtureConfig(parts=("factorized_dense", "dot"))):
        grown = resize_configs(config, max_length=1000)
        assert (grown.max_length, grown.fine) == (1000, 16)
        assert resize_configs(grown, max_length=256).fine == 16
    assert resize_configs(SynthesizerMixtureConfig(), max_length=1000).fine is None


def test_unresizable_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"'cosformer'.*cannot be resized") as refused:
        resize_configs(Stack((CosformerConfig(),)), max_length=9)
    assert "synthesizer_random" in str(refused.value)
