"""Attention to keys and values pooled over windows (Liu et al. 2018, arXiv 1801.10198).

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head,
K positions in a window, N windows (plus the null key).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, State, attentions
from seqtk.attention.qkv import QKVAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.dot_product import attend
from seqtk.utils.errors import UserError


class PooledKeysAttention(QKVAttention):
    """Base class of attention to pooled keys K' and values V': softmax(Q K'ᵀ / √E) V' per head.

    Each pooled key and value comes from a window of keys and values. Window j has the positions j · stride … j · stride
    + kernel - 1 that exist in the row. In a decoder, position t sees the windows whose last position is at most t (the
    paper does not specify this). No window is visible before the first complete one, so if windows have more than one
    position, every position, in every role, also sees a learned null key and value. A row that is all padding sees
    nothing. O(T S D / stride) time; a step is O(S / stride).
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.kernel, self.stride = self.window()
        self.null = nn.Parameter(torch.zeros(2, dim)) if self.kernel > 1 else None
        self.pool_key, self.pool_value = self.pool(), self.pool()

    def window(self) -> tuple[int, int]:
        """Returns (kernel size, stride) of the windows."""
        raise NotImplementedError

    def pool(self) -> "Pool":
        """Returns the module that pools a window into one vector."""
        raise NotImplementedError

    def mix(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        return self.read(query_BHTE, self.compress(key_BHSE, value_BHSE, pad_BS=pad_BS))

    def compress(self, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> State:
        """Returns a dict of `key` and `value`, BHNE: the null key and value, then one key and value per window.

        The mask `exists`, BN, is True for the windows that a row has, or None if all rows have all windows.
        """
        length = key_BHSE.shape[2]
        is_full = pad_BS is None and self.kernel == self.stride and length % self.stride == 0
        real_BS = key_BHSE.new_ones(1, length, dtype=torch.bool) if pad_BS is None else ~pad_BS
        real_B1NK1 = self.windows(real_BS[:, None, :, None], fill=0)

        def pooled(pool: Pool, x_BHSE: Tensor) -> Tensor:
            fill = pool.fill(x_BHSE)
            if pad_BS is not None:
                x_BHSE = x_BHSE.masked_fill(pad_BS[:, None, :, None], fill)
            return pool(self.windows(x_BHSE, fill=fill), None if is_full else real_B1NK1)  # type: ignore[no-any-return]

        key_BHNE, value_BHNE = self.with_null(pooled(self.pool_key, key_BHSE), pooled(self.pool_value, value_BHSE))
        if pad_BS is None:
            return {"key": key_BHNE, "value": value_BHNE, "exists": None}
        exists_BN = real_B1NK1.any(-2)[:, 0, :, 0]
        if self.null is not None:
            exists_BN = torch.cat([real_BS.any(-1, keepdim=True), exists_BN], 1)
        return {"key": key_BHNE, "value": value_BHNE, "exists": exists_BN}

    def read(self, query_BHTE: Tensor, memory: State) -> Tensor:
        seen_BHTN = None if memory["exists"] is None else memory["exists"][:, None, None]
        if self.role is Role.CAUSAL:
            complete_TN = self.complete(query_BHTE.shape[2], memory["key"].shape[2], query_BHTE.device)
            seen_BHTN = complete_TN if seen_BHTN is None else seen_BHTN & complete_TN
        return attend(query_BHTE, memory["key"], memory["value"], bias=seen_BHTN, dropout=self.active_dropout)

    def start_mix(self, batch: int) -> State:
        """Returns the state before the first position.

        `key` and `value` are the null key and value, followed by one key and value per complete window. `keys` and
        `values` are the keys and values of the incomplete window.
        """
        none_BH0E = self.query.weight.new_zeros(batch, self.heads, 0, self.head_dim)
        key_BHNE, value_BHNE = self.with_null(none_BH0E, none_BH0E)
        return {"key": key_BHNE, "value": value_BHNE, "keys": none_BH0E, "values": none_BH0E}

    def mix_step(self, query_BH1E: Tensor, key_BH1E: Tensor, value_BH1E: Tensor, state: State) -> tuple[Tensor, State]:
        key_BHNE, value_BHNE = state["key"], state["value"]
        keys_BHKE, values_BHKE = torch.cat([state["keys"], key_BH1E], 2), torch.cat([state["values"], value_BH1E], 2)
        if keys_BHKE.shape[2] == self.kernel:
            key_BHNE = torch.cat([key_BHNE, self.pool_key(keys_BHKE[:, :, None], None)], 2)
            value_BHNE = torch.cat([value_BHNE, self.pool_value(values_BHKE[:, :, None], None)], 2)
            keys_BHKE, values_BHKE = keys_BHKE[:, :, self.stride :], values_BHKE[:, :, self.stride :]
        y_BH1E = attend(query_BH1E, key_BHNE, value_BHNE, dropout=self.active_dropout)
        return y_BH1E, {"key": key_BHNE, "value": value_BHNE, "keys": keys_BHKE, "values": values_BHKE}

    def windows(self, x_BHSE: Tensor, *, fill: float) -> Tensor:
        """Returns x_BHNKE, the windows that begin within the input. Positions beyond its end contain `fill`."""
        missing = (-(-x_BHSE.shape[2] // self.stride) - 1) * self.stride + self.kernel - x_BHSE.shape[2]
        if missing:
            x_BHSE = functional.pad(x_BHSE, (0, 0, 0, missing), value=fill)
        if self.kernel == self.stride:
            return x_BHSE.unflatten(2, (-1, self.kernel))  # type: ignore[no-any-return, no-untyped-call]
        return x_BHSE.unfold(2, self.kernel, self.stride).transpose(-1, -2)

    def with_null(self, key_BHNE: Tensor, value_BHNE: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the keys and values with the null key and value prepended."""
        if self.null is None:
            return key_BHNE, value_BHNE
        null_BHNE = self.split(self.null[None].to(key_BHNE.dtype)).expand(len(key_BHNE), -1, -1, -1)
        return torch.cat([null_BHNE[:, :, :1], key_BHNE], 2), torch.cat([null_BHNE[:, :, 1:], value_BHNE], 2)

    def complete(self, length: int, keys: int, device: torch.device) -> Tensor:
        """Returns mask_TN, True where position t sees key n: the null key, or a window that ends at or before t."""
        nulls = 0 if self.null is None else 1
        last_N = torch.arange(keys - nulls, device=device) * self.stride + self.kernel - 1
        return torch.arange(length, device=device)[:, None] >= functional.pad(last_N, (nulls, 0))


@dataclass(frozen=True)
class MemoryCompressedConfig(QKVConfig):
    """Dot-product attention to keys and values reduced by strided convolutions: O(T S D / compression) time."""

    compression: int = setting(
        3, at_least=1, help="Positions per compressed key and value: kernel size and stride of the convolutions."
    )


@attentions.register("memory_compressed", MemoryCompressedConfig)
class MemoryCompressedAttention(PooledKeysAttention):
    """Attention to keys and values reduced by strided convolutions: softmax(Q conv(K)ᵀ / √E) conv(V) (section 4.2.3).

    Each head has separate convolutions. Parameters: 2 D² + 2 M D (+ 4 D bias), 2 (D E r + D) of the convolutions
    (without D if bias=False), where r is `compression`, and 2 D of the null key and value if r > 1.
    """

    def window(self) -> tuple[int, int]:
        return self.config.compression, self.config.compression

    def pool(self) -> "Pool":
        return ConvolutionPool(self.heads, self.head_dim, kernel=self.kernel, bias=self.config.bias)


@dataclass(frozen=True)
class PooledConfig(QKVConfig):
    """Dot-product attention to the means or maxima of neighboring keys and values: O(T S D / stride) time."""

    pool: Literal["mean", "max"] = setting("mean", help="How a window is pooled.")
    kernel: int = setting(3, at_least=1, help="Positions in a window.")
    stride: int = setting(3, at_least=1, help="Positions between the starts of windows; at most kernel.")


@attentions.register("pooled", PooledConfig)
class PooledAttention(PooledKeysAttention):
    """Attention to pooled keys and values: softmax(Q pool(K)ᵀ / √E) pool(V) per head.

    The pool of a window is the mean or, per feature, the maximum of its positions. Parameters: 2 D² + 2 M D (+ 4 D
    bias), and 2 D of the null key and value if kernel > 1. With windows of one position it equals softmax attention.
    """

    def window(self) -> tuple[int, int]:
        kernel, stride = self.config.kernel, self.config.stride
        if stride > kernel:
            raise UserError(
                f"attention.stride={stride} must be at most attention.kernel={kernel}.",
                "Otherwise some positions are in no window.",
            )
        return kernel, stride

    def pool(self) -> "Pool":
        return {"mean": MeanPool, "max": MaxPool}[self.config.pool]()


class Pool(nn.Module):
    """Base class: pools the real positions of a window into one vector.

    A window without real positions gives a finite vector.
    """

    def fill(self, x: Tensor) -> float:
        """Returns the value for positions of a window that are padding or beyond the input."""
        return 0.0

    def forward(self, x_BHNKE: Tensor, real_B1NK1: Tensor | None) -> Tensor:
        """Returns pooled_BHNE. `real_B1NK1` is True at real positions, or None if all positions are real."""
        raise NotImplementedError


class MeanPool(Pool):
    """Pools a window into the mean of its real positions."""

    def forward(self, x_BHNKE: Tensor, real_B1NK1: Tensor | None) -> Tensor:
        return x_BHNKE.mean(-2) if real_B1NK1 is None else x_BHNKE.sum(-2) / real_B1NK1.sum(-2).clamp(min=1)


class MaxPool(Pool):
    """Pools a window into the maximum of each feature over its real positions."""

    def fill(self, x: Tensor) -> float:
        return torch.finfo(x.dtype).min

    def forward(self, x_BHNKE: Tensor, real_B1NK1: Tensor | None) -> Tensor:
        largest_BHNE = x_BHNKE.amax(-2)
        return largest_BHNE if real_B1NK1 is None else largest_BHNE.masked_fill(~real_B1NK1.any(-2), 0)


class ConvolutionPool(Pool):
    """Pools a window with a linear map of all its positions in each head: H K E² (+ H E bias) weights."""

    def __init__(self, heads: int, head_dim: int, *, kernel: int, bias: bool) -> None:
        super().__init__()
        bound = math.sqrt(6 / (head_dim * (kernel + 1)))
        self.weight = nn.Parameter(torch.empty(heads, kernel, head_dim, head_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(heads * head_dim)) if bias else None

    def forward(self, x_BHNKE: Tensor, real_B1NK1: Tensor | None) -> Tensor:
        y_BHNE = torch.einsum("bhnke,hkef->bhnf", x_BHNKE, self.weight)
        return y_BHNE if self.bias is None else y_BHNE + self.bias.view(len(self.weight), 1, -1)
