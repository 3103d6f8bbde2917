"""Tests of Linformer. The tests that all attention layers share are in tests/laws."""

from typing import Any

import pytest
import torch

from seqtk.attention import Attention, Role, attentions
from seqtk.attention.linformer import LinformerConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.config.schema import from_dict
from seqtk.utils.errors import UserError

DIM = 8


def build(role: Role = Role.ENCODER, **fields: Any) -> Attention:
    config = from_dict(LinformerConfig, {"heads": 2, "max_length": 10, "rank": 10, **fields})
    return attentions.build(config, dim=DIM, role=role).eval()


@pytest.mark.parametrize("sharing", ["none", "headwise", "key_value"])
@pytest.mark.parametrize("role", [Role.ENCODER, Role.CROSS])
def test_identity_maps_give_softmax_attention(sharing: str, role: Role) -> None:
    linformer = build(role, sharing=sharing)
    softmax = attentions.build(SoftmaxConfig(heads=2), dim=DIM, role=role).eval()
    linformer.load_state_dict(softmax.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in linformer.named_parameters():
            if name.endswith("_map"):
                parameter.copy_(torch.eye(10).expand_as(parameter))
    x_BTD = torch.randn(3, 10, DIM)
    memory_BSM = torch.randn(3, 10, DIM) if role is Role.CROSS else None
    torch.testing.assert_close(linformer(x_BTD, memory_BSM), softmax(x_BTD, memory_BSM))


def test_shared_maps_equal_the_same_map_per_head() -> None:
    """A map before the projection equals a map after it, also with biases and padding."""
    shared, own = build(rank=3).double(), build(rank=3, sharing="none").double()
    torch.nn.init.normal_(shared.get_parameter("key.bias"))
    torch.nn.init.normal_(shared.get_parameter("value.bias"))
    weights = shared.state_dict()
    own.load_state_dict({k: w.expand(2, -1, -1) if k.endswith("_map") else w for k, w in weights.items()})
    x_BTD = torch.randn(2, 7, DIM, dtype=torch.float64)
    pad_BS = torch.arange(7) >= torch.tensor([[7], [4]])
    torch.testing.assert_close(shared(x_BTD, pad_BS=pad_BS), own(x_BTD, pad_BS=pad_BS))


@pytest.mark.parametrize(("sharing", "maps"), [("none", 16), ("headwise", 2), ("key_value", 1)])
def test_parameter_count_depends_on_sharing(sharing: str, maps: int) -> None:
    config = from_dict(LinformerConfig, {"heads": 8, "rank": 128, "max_length": 512, "sharing": sharing})
    with torch.device("meta"):
        layer = attentions.build(config, dim=512, role=Role.ENCODER)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (512**2 + 512) + maps * 128 * 512


def test_causal_self_attention_is_refused() -> None:
    with pytest.raises(UserError, match="no causal form"):
        build(Role.CAUSAL)
