"""Rotary position embeddings: rotates pairs of a head's elements by an angle proportional to the position.

(x_e, x_{e+F}) is rotated by position · 10000^(-e/F) for e = 0 … F - 1, so that the product of a query and a key depends
on their distance only (Su et al. 2021, RoFormer, arXiv 2104.09864, section 3.2.2; the pairs combine the two halves of
the head).

Where it runs: the same products on every device.

B batch, T length, H heads, E width of a head, F = E / 2.
"""

import torch
from torch import Tensor

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.tensors import to_fp32


def naive(x_BHTE: Tensor, positions_BT: Tensor) -> Tensor:
    """Computes the rotation of each pair as a complex product with exp(i · angle)."""
    half = x_BHTE.shape[-1] // 2
    real_BHTF, imaginary_BHTF = to_fp32(x_BHTE).chunk(2, dim=-1)
    frequency_F = 10000.0 ** (-torch.arange(half, device=x_BHTE.device, dtype=real_BHTF.dtype) / half)
    angle_BTF = positions_BT[..., None].to(real_BHTF.dtype) * frequency_F
    turn_B1TF = torch.polar(torch.ones_like(angle_BTF), angle_BTF)[:, None]
    turned_BHTF = torch.complex(real_BHTF, imaginary_BHTF) * turn_B1TF
    return torch.cat([turned_BHTF.real, turned_BHTF.imag], dim=-1).to(x_BHTE.dtype)


def rotate(x_BHTE: Tensor, positions_BT: Tensor) -> Tensor:
    """Returns the rotated queries or keys in the dtype of `x`, computed in float32 or wider."""
    if naive_mode():
        return naive(x_BHTE, positions_BT)
    half = x_BHTE.shape[-1] // 2
    dtype = torch.promote_types(x_BHTE.dtype, torch.float32)
    frequency_F = 10000.0 ** (-torch.arange(half, device=x_BHTE.device, dtype=dtype) / half)
    angle_B1TF = positions_BT[:, None, :, None].to(dtype) * frequency_F
    first, second = x_BHTE.to(dtype).chunk(2, dim=-1)
    sin, cos = angle_B1TF.sin(), angle_B1TF.cos()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BHTE.dtype)
