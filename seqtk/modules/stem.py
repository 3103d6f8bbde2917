"""Convolutions before the first block of an encoder.

B batch, T length, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.utils.errors import UserError


class ConvolutionalStem(nn.Module):
    """Convolutions over neighboring positions: `layers` layers, each x + GELU(convolution(LN(x))).

    The convolutions are dense, with an odd kernel size K and K D² + 3 D weights each. Padding reads as zero, so the
    output of a row does not depend on its padding. A convolutional stem improves Transformers on pixels and bytes (Long
    Range Arena's image task; Xiao et al. 2021, arXiv 2106.14881, for vision).

    With `width`, a row of the batch is an image of this width, and kernels are K × K: K² D² + 3 D weights. An
    incomplete image is padded with zeros.
    """

    def __init__(self, dim: int, *, layers: int, kernel_size: int, width: int | None = None) -> None:
        super().__init__()
        self.width = width
        if kernel_size % 2 == 0:
            raise UserError(f"model.encoder.stem_kernel_size={kernel_size}: must be odd.")
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        kind = nn.Conv1d if width is None else nn.Conv2d
        self.convolutions = nn.ModuleList(kind(dim, dim, kernel_size, padding=kernel_size // 2) for _ in range(layers))

    def forward(self, x_BTD: Tensor, *, pad_BT: Tensor | None) -> Tensor:
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            z_BTD = norm(x_BTD)
            if pad_BT is not None:
                z_BTD = torch.where(pad_BT[..., None], 0, z_BTD)
            x_BTD = x_BTD + functional.gelu(self._convolve(convolution, z_BTD.transpose(1, 2)).transpose(1, 2))
        return x_BTD

    def _convolve(self, convolution: nn.Module, z_BDT: Tensor) -> Tensor:
        if self.width is None:
            return convolution(z_BDT)  # type: ignore[no-any-return]
        length = z_BDT.shape[2]
        whole_BDT = functional.pad(z_BDT, (0, -length % self.width))
        y_BDHW = convolution(whole_BDT.reshape(*whole_BDT.shape[:2], -1, self.width))
        return y_BDHW.flatten(2)[:, :, :length]  # type: ignore[no-any-return]
