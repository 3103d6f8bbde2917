"""Lightweight and dynamic convolution, in place of self-attention (Wu et al. 2019, arXiv 1901.10430, section 3).

    y_t = out(Σ_k w_t[k] v_{t + k - before})        v = GLU(value(x))

w_t has one kernel per head, which the channels of the head share. A kernel is a softmax over its K taps. Taps beyond
the ends of a row, or on padding, read zeros, and the softmax still counts them.

No T × T matrix and no copy of the input per tap is created. A row is split into chunks of C positions. A chunk reads a
window of C + K - 1 positions, and its convolution is a product with a band matrix of that width. This takes (C + K - 1)
/ K times the arithmetic, but runs at the speed of matrix products.

B batch, T length, D width of the layer, H heads, E = D / H, K taps, N chunks of C positions, W = C + K - 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import probability, setting
from seqtk.modules.block import Dropout
from seqtk.ops.depthwise import depthwise
from seqtk.ops.head_checkpoint import LazyProjection, checkpoint_over_heads
from seqtk.ops.tensors import zero_padding

CHUNK = 32
"""The number of positions per band matrix in long rows."""


@dataclass(frozen=True)
class ConvolutionConfig(QKVConfig):
    """The settings of lightweight and dynamic convolution."""

    dropout: float = probability(0.0, help="Dropout of the kernel's taps after their softmax (DropConnect).")
    kernel_size: int = setting(
        31,
        at_least=1,
        help="Number of taps (positions) of a kernel: half on each side in an encoder, all in the past in a decoder.",
    )
    glu: bool = setting(True, help="Gate the input projection with a gated linear unit, which doubles its width.")
    weight_softmax: bool = setting(True, help="Normalize the taps of a kernel with a softmax.")
    input_dropout: float = probability(0.0, help="Dropout of the layer's input.")


class Convolution(HeadedAttention):
    """Base class of lightweight and dynamic convolution: y_t = out(Σ_k w[k] v_{t + k - before}), v = GLU(value(x)).

    Parameters: 3 D² (+ 3 D bias), or 2 D² (+ 2 D bias) without the GLU, and the kernels. `before` is (K - 1) // 2 in an
    encoder, so an even kernel reaches one position further into the future, and K - 1 in a decoder. A step is O(K D):
    the state holds the last K - 1 positions of v.
    """

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.before = config.kernel_size - 1 if role is Role.CAUSAL else (config.kernel_size - 1) // 2
        self.value = self.projection(dim, (1 + config.glu) * dim)
        self.out = self.projection(dim)
        self.input_dropout, self.dropout = Dropout(config.input_dropout), Dropout(config.dropout)

    def values(self, x_BTD: Tensor) -> Tensor:
        """Returns v_BTD, the input of the convolution."""
        v_BTD: Tensor = self.value(self.input_dropout(x_BTD))
        return functional.glu(v_BTD, dim=-1) if self.config.glu else v_BTD

    def normalize(self, kernels: Tensor) -> Tensor:
        """Returns the kernels after softmax and dropout. The taps are the last dimension."""
        return self.dropout(kernels.softmax(-1) if self.config.weight_softmax else kernels)  # type: ignore[no-any-return]

    def convolve(self, v_BTD: Tensor) -> Tensor:
        """Returns y_BTD, the convolution at all positions."""
        raise NotImplementedError

    def convolve_once(self, window_BKHE: Tensor) -> Tensor:
        """Returns y_BHE, the convolution at the last position of a window."""
        raise NotImplementedError

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        return self.out(self.convolve(zero_padding(self.values(x_BTD), pad_BS))), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        return StepState(dynamic={"past": self.out.weight.new_zeros(batch, self.config.kernel_size - 1, self.dim)})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        window_BKD = torch.cat([state.dynamic["past"], self.values(x_B1D)], dim=1)
        y_BHE = self.convolve_once(window_BKD.view(*window_BKD.shape[:2], self.heads, self.head_dim))
        return self.out(y_BHE.flatten(1)[:, None]), state.advance({"past": window_BKD[:, 1:]})

    def windows(self, v_BTD: Tensor, *, chunk: int) -> Tensor:
        """Returns v_BHNWE, the window of positions that each chunk reads, with zeros beyond the ends of the rows."""
        taps, length = self.config.kernel_size, v_BTD.shape[1]
        chunks = (length + chunk - 1) // chunk
        further = (taps + chunk - 2) // chunk  # the number of chunks that a window covers after its first
        after = (chunks + further) * chunk - length - self.before
        v_BHTE = functional.pad(self.split(v_BTD), (0, 0, self.before, after))
        if chunks == 1:
            return v_BHTE[:, :, None, : chunk + taps - 1]
        v_BHNCE = v_BHTE.view(*v_BHTE.shape[:2], chunks + further, chunk, self.head_dim)
        full = [v_BHNCE[:, :, first : first + chunks] for first in range(further)]
        rest = v_BHNCE[:, :, further:, : taps - 1 - (further - 1) * chunk]
        return torch.cat([*full, rest], dim=3)


@dataclass(frozen=True)
class LightweightConvConfig(ConvolutionConfig):
    """Lightweight convolution: a learned kernel per head; 3 D² + H K weights, O(T K D) time."""


@attentions.register("lightweight_conv", LightweightConvConfig)
class LightweightConv(Convolution):
    """Lightweight convolution: each head has a learned kernel w = softmax(kernel_h) for all positions (section 3.1).

    Parameters: H K for the kernels, and the parameters of `Convolution`. Dropout removes a tap at all positions.
    """

    def __init__(self, config: LightweightConvConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        kernel_H1K = nn.init.xavier_uniform_(torch.empty(self.heads, 1, config.kernel_size))
        self.kernel = nn.Parameter(kernel_H1K.squeeze(1))

    def convolve(self, v_BTD: Tensor) -> Tensor:
        kernel_HK = self.normalize(self.kernel)
        if v_BTD.device.type == "cpu" and v_BTD.dtype is torch.float32:
            return depthwise(v_BTD, kernel_HK, before=self.before, after=self.config.kernel_size - 1 - self.before)
        length = v_BTD.shape[1]
        chunk = chunk_size(length)
        band_HCW = band(kernel_HK[:, None].expand(-1, chunk, -1))
        y_BHNCE = torch.einsum("hcw,bhnwe->bhnce", band_HCW, self.windows(v_BTD, chunk=chunk))
        return self.join(y_BHNCE.flatten(2, 3)[:, :, :length])

    def convolve_once(self, window_BKHE: Tensor) -> Tensor:
        return torch.einsum("bkhe,hk->bhe", window_BKHE, self.normalize(self.kernel))


@dataclass(frozen=True)
class DynamicConvConfig(ConvolutionConfig):
    """Dynamic convolution: each position predicts its kernels; 3 D² + D H K weights, O(T K D + T D H K) time."""


@attentions.register("dynamic_conv", DynamicConvConfig)
class DynamicConv(Convolution):
    """Dynamic convolution: w_t = softmax(kernel_h(v_t)), kernels that a linear map of v_t predicts (section 3.2).

    Parameters: D H K for the linear map, and the parameters of `Convolution`. The map has no bias and torch's default
    initialization, as in fairseq.
    """

    def __init__(self, config: DynamicConvConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.kernel = nn.Linear(dim, self.heads * config.kernel_size, bias=False)

    def taps(self, kernels_BTX: Tensor) -> Tensor:
        """Returns the normalized kernels at each position, BTHK. Dimension X has the kernels of all heads."""
        return self.normalize(kernels_BTX.view(*kernels_BTX.shape[:-1], -1, self.config.kernel_size))

    def convolve(self, v_BTD: Tensor) -> Tensor:
        return checkpoint_over_heads(
            self._convolve_heads,
            v_BTD,
            LazyProjection(v_BTD, self.kernel),
            heads=self.heads,
            is_random=self.active_dropout > 0,
        )

    def _convolve_heads(self, _: slice, v_BTD: Tensor, kernels_BTX: Tensor) -> Tensor:
        """Returns y_BTD of a few heads. Dimension X of `kernels_BTX` has the kernels of these heads."""
        length = v_BTD.shape[1]
        chunk = chunk_size(length)
        chunks = (length + chunk - 1) // chunk
        kernels_BHTK = self.taps(kernels_BTX).transpose(1, 2)
        kernels_BHTK = functional.pad(kernels_BHTK, (0, 0, 0, chunks * chunk - length))
        y_BHNCE = band(kernels_BHTK.view(*kernels_BHTK.shape[:2], chunks, chunk, -1)) @ self.windows(v_BTD, chunk=chunk)
        return self.join(y_BHNCE.flatten(2, 3)[:, :, :length])

    def convolve_once(self, window_BKHE: Tensor) -> Tensor:
        kernels_BHK = self.taps(self.kernel(window_BKHE[:, -1].flatten(1)))
        return torch.einsum("bkhe,bhk->bhe", window_BKHE, kernels_BHK)


def chunk_size(length: int) -> int:
    """Returns the chunk size. A short row is one chunk, because the second of two chunks would be mostly empty."""
    return length if length <= CHUNK * 3 // 2 else CHUNK


def band(kernels_CK: Tensor) -> Tensor:
    """Returns the kernels as band matrices, band_CW: row c has the taps of position c from column c on, else zeros."""
    chunk, taps = kernels_CK.shape[-2:]
    # Append C zeros to each kernel. In a view with rows one element shorter, each row starts one column further right.
    flat = functional.pad(kernels_CK, (0, chunk)).flatten(-2)
    return flat[..., : chunk * (chunk + taps - 1)].view(*kernels_CK.shape[:-1], chunk + taps - 1)
