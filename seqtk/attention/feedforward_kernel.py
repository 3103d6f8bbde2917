"""Kernelised attention whose feature map is trained: a small network without biases in each head.

Yorsh and Kovalenko 2022, arXiv 2211.04076, "Linear Self-Attention Approximation via Trainable Feedforward Kernel".
B batch, T length, D width of the layer, H heads, E width of a head, K rank of a gate.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, attentions
from seqtk.attention.linear import ALL, KernelAttention, KernelConfig
from seqtk.config.fields import probability, setting
from seqtk.modules.dropout import Dropout
from seqtk.utils.errors import UserError

Kernel = Literal["ffn", "linear", "glu", "oglu", "aoglu"]
GATED = ("glu", "oglu", "aoglu")
ORTHOGONAL = ("linear", "oglu", "aoglu")


@dataclass(frozen=True)
class FeedForwardKernelConfig(KernelConfig):
    """Linear attention with a trained feature map: O(D² / H) more weights than dot-product, O(T D² / H) time."""

    kernel: Kernel = setting(
        "oglu",
        help="Each stage: a matrix, an orthogonal one, either of them gated, or gated with a gate of rank E/4.",
    )
    depth: int = setting(1, at_least=1, at_most=3, help="Stages of the kernel.")
    orthogonality: float = setting(
        0.01, at_least=0, help="Weight of the penalty on W Wᵀ ≠ I, for linear, oglu and aoglu."
    )
    kernel_dropout: float = probability(0.0, help="Dropout of the input of each stage.")


@attentions.register("feedforward_kernel", FeedForwardKernelConfig)
class FeedForwardKernelAttention(KernelAttention):
    """φ(x) = g_n(… g_1(x)), the same for queries and keys; g_i one of these per head, without bias:

    ffn, linear: a(x W); glu, oglu: a(x W) ⊙ sigmoid(x U); aoglu: a(x W) ⊙ sigmoid(x A B) with A E × E/4, B E/4 × E;
    a is softplus in the last stage and the identity in those before. In `linear`, `oglu` and `aoglu` W starts
    orthogonal, and `aux_loss` holds it there: λ · mean((W Wᵀ - I)²) over the heads and elements, summed over stages.

    The sources also divide φ by √E, which cancels in the quotient, as there is no epsilon. The causal and the cross
    form are ours: the same sums over the past, or over a memory. Parameters beside the projections, n stages:
    n H E² (ffn, linear), 2 n H E² (glu, oglu), n H (E² + 2 E K) with K = max(1, E/4) (aoglu). O(T E D) time, O(T D)
    memory.
    """

    def __init__(self, config: FeedForwardKernelConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if not 1 <= config.depth <= 3:
            raise UserError(f"attention.depth={config.depth} must be 1, 2 or 3.")
        if config.orthogonality < 0:
            raise UserError(f"attention.orthogonality={config.orthogonality} must not be negative.")
        self.stages = nn.ModuleList(Stage(config, heads=self.heads, width=self.head_dim) for _ in range(config.depth))

    @property
    def is_random(self) -> bool:
        return self.training and bool(self.config.kernel_dropout)

    def features(self, x_BHTE: Tensor, *, some: slice = ALL, first: int = 0) -> Tensor:
        for stage in self.stages[:-1]:
            x_BHTE = stage(x_BHTE, some)
        return self.stages[-1](x_BHTE, some, positive=True)  # type: ignore[no-any-return]

    def aux_loss(self) -> Tensor | None:
        if self.config.kernel not in ORTHOGONAL or not self.config.orthogonality:
            return None
        distances = [stage.distance_from_orthogonal() for stage in self.stages]  # type: ignore[operator]
        return self.config.orthogonality * torch.stack(distances).sum()  # type: ignore[no-any-return]


class Stage(nn.Module):
    """a(x W), or a(x W) ⊙ sigmoid(x U), in each head."""

    def __init__(self, config: FeedForwardKernelConfig, *, heads: int, width: int) -> None:
        super().__init__()
        self.dropout = Dropout(config.kernel_dropout)
        self.matrix_HEE = matrices(heads, width, width, orthogonal=config.kernel in ORTHOGONAL)
        self.gate: nn.ParameterList | None = None
        if config.kernel in GATED:
            rank = gate_rank(width)
            shapes = [(width, rank), (rank, width)] if config.kernel == "aoglu" else [(width, width)]
            self.gate = nn.ParameterList(matrices(heads, *shape) for shape in shapes)

    def forward(self, x_BHTE: Tensor, some: slice = ALL, *, positive: bool = False) -> Tensor:
        """Of `some` heads."""
        x_BHTE = self.dropout(x_BHTE)
        y_BHTE = x_BHTE @ self.matrix_HEE[some]
        if positive:
            y_BHTE = functional.softplus(y_BHTE.to(torch.promote_types(y_BHTE.dtype, torch.float32)))
        if self.gate is None:
            return y_BHTE
        for factor in self.gate:
            x_BHTE = x_BHTE @ factor[some]
        return y_BHTE * x_BHTE.sigmoid()

    def distance_from_orthogonal(self) -> Tensor:
        """mean((W Wᵀ - I)²) over heads and elements, in float32 or wider."""
        with torch.autocast(self.matrix_HEE.device.type, enabled=False):
            product_HEE = self.matrix_HEE @ self.matrix_HEE.transpose(-1, -2)
            identity = torch.eye(product_HEE.shape[-1], dtype=product_HEE.dtype, device=product_HEE.device)
            return (product_HEE - identity).square().mean()


def matrices(heads: int, rows: int, columns: int, *, orthogonal: bool = False) -> nn.Parameter:
    """One matrix a head, orthogonal or Xavier-uniform."""
    tensor_HRC = torch.empty(heads, rows, columns)
    for matrix in tensor_HRC:
        (nn.init.orthogonal_ if orthogonal else nn.init.xavier_uniform_)(matrix)
    return nn.Parameter(tensor_HRC)


def gate_rank(width: int) -> int:
    """K of a gate of low rank: a quarter of the width of a head."""
    return max(1, width // 4)
