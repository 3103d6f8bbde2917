"""Linear-time attention with a learned feature map: each head has a small network without biases.

Yorsh and Kovalenko 2022, arXiv 2211.04076, "Linear Self-Attention Approximation via Trainable Feedforward Kernel".

B batch, T length, D width of the layer, H heads, E width of a head, K rank of a gate.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, attentions
from seqtk.attention.headwise import ALL_HEADS
from seqtk.attention.kernel import KernelAttention, KernelConfig
from seqtk.config.fields import probability, setting
from seqtk.ops.dropout import dropout
from seqtk.ops.tensors import to_fp32, without_autocast

Kernel = Literal["ffn", "linear", "glu", "oglu", "aoglu"]
GATED = ("glu", "oglu", "aoglu")
ORTHOGONAL = ("linear", "oglu", "aoglu")


@dataclass(frozen=True)
class FeedForwardKernelConfig(KernelConfig):
    """Linear attention with a learned feature map: O(D² / H) more weights than dot-product attention, O(T D² / H)."""

    kernel: Kernel = setting(
        "oglu",
        help="The form of each stage. ffn: a matrix. linear: an orthogonal matrix. glu: a matrix and a gate. oglu: an "
        "orthogonal matrix and a gate. aoglu: oglu with a low-rank gate, of a quarter of the head's width.",
    )
    depth: int = setting(1, at_least=1, at_most=3, help="Stages of the feature map.")
    orthogonality: float = setting(
        0.01, at_least=0, help="Weight of the penalty that keeps W Wᵀ near I, for linear, oglu and aoglu."
    )
    kernel_dropout: float = probability(0.0, help="Dropout of the input of each stage.")


@attentions.register("feedforward_kernel", FeedForwardKernelConfig)
class FeedForwardKernelAttention(KernelAttention):
    """Linear attention whose feature map is a network of n stages per head, φ(x) = g_n(… g_1(x)), without biases.

    The setting `kernel` selects the form of a stage. `ffn`, `linear`: a(x W). `glu`, `oglu`: a(x W) ⊙ sigmoid(x U).
    `aoglu`: a(x W) ⊙ sigmoid(x A B) with A E × K, B K × E, K = max(1, E/4). The activation a is softplus in the last
    stage and the identity in the other stages. In `linear`, `oglu` and `aoglu`, W is initially orthogonal, and
    `aux_loss` penalizes deviations: λ · mean((W Wᵀ - I)²) over heads and elements, summed over stages, where λ is
    `orthogonality`.

    The paper and its code also divide φ by √E, which cancels in the quotient, as there is no epsilon. The paper has no
    causal form and no cross-attention. seqtk computes the same sums over the past, or over a memory. Parameters of n
    stages: n H E² (ffn, linear), 2 n H E² (glu, oglu), n H (E² + 2 E K) (aoglu). O(T E D) time, O(T D) memory.
    """

    def __init__(self, config: FeedForwardKernelConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.stages = nn.ModuleList(Stage(config, heads=self.heads, width=self.head_dim) for _ in range(config.depth))

    @property
    def is_random(self) -> bool:
        return self.training and self.config.kernel_dropout > 0

    def mix_parameters(self) -> Iterable[Tensor]:
        return self.stages.parameters()

    def features(self, x_BHTE: Tensor, *, heads: slice = ALL_HEADS, first: int = 0) -> Tensor:
        for stage in self.stages[:-1]:
            x_BHTE = stage(x_BHTE, heads)
        return self.stages[-1](x_BHTE, heads, positive=True)  # type: ignore[no-any-return]

    def aux_loss(self) -> Tensor | None:
        if self.config.kernel not in ORTHOGONAL or not self.config.orthogonality:
            return None
        distances = [stage.distance_from_orthogonal() for stage in self.stages]  # type: ignore[operator]
        return self.config.orthogonality * torch.stack(distances).sum()  # type: ignore[no-any-return]


class Stage(nn.Module):
    """One stage of the feature map: a(x W), or a(x W) ⊙ sigmoid(x U), in each head."""

    def __init__(self, config: FeedForwardKernelConfig, *, heads: int, width: int) -> None:
        super().__init__()
        self.dropout = config.kernel_dropout
        self.matrix_HEE = matrices(heads, width, width, orthogonal=config.kernel in ORTHOGONAL)
        self.gate: nn.ParameterList | None = None
        if config.kernel in GATED:
            rank = max(1, width // 4)
            shapes = [(width, rank), (rank, width)] if config.kernel == "aoglu" else [(width, width)]
            self.gate = nn.ParameterList(matrices(heads, *shape) for shape in shapes)

    def forward(self, x_BHTE: Tensor, heads: slice, *, positive: bool = False) -> Tensor:
        """Returns the outputs of `heads`, or their softplus if `positive`, in float32 or wider."""
        x_BHTE = dropout(x_BHTE, self.dropout if self.training else 0.0)
        y_BHTE = x_BHTE @ self.matrix_HEE[heads]
        if positive:
            y_BHTE = functional.softplus(to_fp32(y_BHTE))
        if self.gate is None:
            return y_BHTE
        for factor in self.gate:
            x_BHTE = x_BHTE @ factor[heads]
        return y_BHTE * x_BHTE.sigmoid()

    def distance_from_orthogonal(self) -> Tensor:
        """Returns mean((W Wᵀ - I)²) over heads and elements, in float32 or wider."""
        with without_autocast(self.matrix_HEE):
            product_HEE = self.matrix_HEE @ self.matrix_HEE.mT
            identity = torch.eye(product_HEE.shape[-1], dtype=product_HEE.dtype, device=product_HEE.device)
            return (product_HEE - identity).square().mean()


def matrices(heads: int, rows: int, columns: int, *, orthogonal: bool = False) -> nn.Parameter:
    """Returns one matrix per head, orthogonal or Xavier-uniform."""
    tensor_HRC = torch.empty(heads, rows, columns)
    for matrix in tensor_HRC:
        (nn.init.orthogonal_ if orthogonal else nn.init.xavier_uniform_)(matrix)
    return nn.Parameter(tensor_HRC)
