"""Softmax attention and its gradients, compared with torch's multi-head attention in float64."""

import pytest
import torch
from torch import Tensor, nn

from seqtk.attention import Role
from seqtk.attention.softmax import SoftmaxAttention, SoftmaxConfig

BATCH, LENGTH, SOURCE, DIM, MEMORY_DIM, HEADS = 3, 5, 7, 12, 8, 3


def torch_attention(layer: SoftmaxAttention) -> nn.MultiheadAttention:
    """Returns torch's multi-head attention with the weights of seqtk's layer."""
    width = layer.memory_dim
    theirs = nn.MultiheadAttention(DIM, HEADS, kdim=width, vdim=width, batch_first=True, dtype=torch.float64)
    weights = {"out_proj.weight": layer.out.weight, "out_proj.bias": layer.out.bias}
    inputs = [layer.query, layer.key, layer.value]
    weights["in_proj_bias"] = torch.cat([linear.bias for linear in inputs])
    if width == DIM:
        weights["in_proj_weight"] = torch.cat([linear.weight for linear in inputs])
    else:
        weights |= {f"{name}_proj_weight": linear.weight for name, linear in zip("qkv", inputs, strict=True)}
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("role", list(Role))
def test_softmax_equals_torch_multihead_attention(role: Role, padded: bool, device: torch.device) -> None:
    memory_dim = MEMORY_DIM if role is Role.CROSS else None
    layer = SoftmaxAttention(SoftmaxConfig(heads=HEADS), dim=DIM, role=role, memory_dim=memory_dim)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    layer = layer.double().to(device)
    theirs = torch_attention(layer).to(device)

    x_BTD = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64, device=device)
    memory_BSM = None
    size = LENGTH
    if role is Role.CROSS:
        size = SOURCE
        memory_BSM = torch.randn(BATCH, SOURCE, MEMORY_DIM, dtype=torch.float64, device=device)
    pad_BS = torch.arange(size, device=device) >= torch.tensor([[size], [2], [3]], device=device) if padded else None
    future_TT = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=device).triu(1) if role is Role.CAUSAL else None

    def ours_and_gradient(run: nn.Module, x_BTD: Tensor, **options: Tensor | None) -> tuple[Tensor, Tensor]:
        x_BTD = x_BTD.clone().requires_grad_()
        keys = x_BTD if memory_BSM is None else memory_BSM
        if run is layer:
            y_BTD = layer(x_BTD, memory_BSM, pad_BS=pad_BS)[0]
        else:
            y_BTD, _ = theirs(x_BTD, keys, keys, key_padding_mask=pad_BS, attn_mask=future_TT, need_weights=False)
        return y_BTD, torch.autograd.grad(y_BTD.square().sum(), x_BTD)[0]

    for ours, expected in zip(ours_and_gradient(layer, x_BTD), ours_and_gradient(theirs, x_BTD), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)
