"""FNet: a Fourier transform without parameters mixes the positions (Lee-Thorp et al. 2021, arXiv 2105.03824).

B batch, T length, D width, P length of a padded convolution.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.attention.base import Attention, AttentionConfig, Role, State, attentions
from seqtk.config.fields import setting
from seqtk.ops.tensors import to_autocast_dtype, to_fp32, without_autocast


@dataclass(frozen=True)
class FNetConfig(AttentionConfig):
    """The real part of a Fourier transform over positions and width: no weights, O(T D log(T D)) time. Encoder only."""

    orthonormal: bool = setting(
        True,
        help="Divide by √(T D), so that outputs and inputs have the same scale. false: no division, as in the paper.",
    )


@attentions.register("fnet", FNetConfig)
class FNet(Attention):
    """The real part of the discrete Fourier transform over a row's T real positions and D channels (section 3.1).

    Real positions are those that are not padding. No parameters. O(T D (log T + log D)) time, O(T D) memory. Every
    output depends on every input, so there is no causal form. Rows of different lengths have different transforms. One
    chirp convolution computes all of them.
    """

    roles = Role.ENCODER
    subquadratic = True

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        wide_BTD = to_fp32(x_BTD)
        with without_autocast(x_BTD):
            if pad_BS is None:
                length_B11 = wide_BTD.new_full((1, 1, 1), x_BTD.shape[1])
                y_BTD = torch.fft.fft2(wide_BTD, dim=(1, 2)).real
            else:
                real_BT1 = ~pad_BS[..., None]
                length_B11 = real_BT1.sum(1, keepdim=True).clamp(min=1)
                y_BTD = transform(torch.fft.fft(wide_BTD * real_BT1, dim=2), length_B11).real
            if self.config.orthonormal:
                y_BTD = y_BTD * (length_B11.to(y_BTD.dtype) * self.dim).rsqrt()
        return to_autocast_dtype(y_BTD.to(x_BTD.dtype)), None


def transform(x_BTD: Tensor, length_B11: Tensor) -> Tensor:
    """Returns the Fourier transforms over T of complex rows of lengths `length_B11`. Later elements must be 0.

    It is a convolution with the chirp c_m = exp(-iπ m² / n), since 2 m k = m² + k² - (k - m)² (Bluestein 1970), so each
    row can have a different length n. The result after the end of a row has no meaning.
    """
    size = x_BTD.shape[1]
    padded = 1 << (2 * size - 2).bit_length()
    position_T1 = torch.arange(size, device=x_BTD.device)[:, None]
    turn_BT1 = (position_T1**2 % (2 * length_B11)).to(x_BTD.real.dtype) / length_B11  # small numbers stay exact
    chirp_BT1 = torch.polar(torch.ones_like(turn_BT1), -math.pi * turn_BT1)
    gap_B = chirp_BT1.new_zeros(len(chirp_BT1), padded - (2 * size - 1), 1)
    filter_BP1 = torch.cat([chirp_BT1, gap_B, chirp_BT1[:, 1:].flip(1)], 1).conj()
    product_BPD = torch.fft.fft(x_BTD * chirp_BT1, n=padded, dim=1) * torch.fft.fft(filter_BP1, dim=1)
    sums_BTD: Tensor = torch.fft.ifft(product_BPD, dim=1)[:, :size]
    return chirp_BT1 * sums_BTD
