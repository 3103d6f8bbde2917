"""Attention to fewer keys: neighbouring keys and values are pooled into one (Liu et al. 2018, arXiv 1801.10198).

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head, K length
of a window, N windows (one more with the null key).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.dot_product import attend
from seqtk.utils.errors import UserError


class PooledKeysAttention(HeadedAttention):
    """softmax(Q K'ᵀ / √E) V' per head, K' and V' made of windows of keys and of values.

    Window j holds the positions j · stride … j · stride + kernel - 1 of a row, counted from its first real position;
    positions past the row's end count for nothing. A decoder's position t sees a window once its last position is
    <= t, which is our reading where the sources are loose; until the first is complete there is nothing to see, so
    a trained null key and value is seen by all (where a window is longer than one position, and in every role). A
    row without any position sees nothing. O(T S D / stride) time; a step is O(S / stride).
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    kernel: int
    stride: int

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.add_projections()
        self.kernel, self.stride = self.window(config)
        self.null = nn.Parameter(torch.zeros(2, dim)) if self.kernel > 1 else None
        self.pool_key, self.pool_value = self.pool(), self.pool()

    @staticmethod
    def window(config: Any) -> tuple[int, int]:
        """(kernel, stride)."""
        raise NotImplementedError

    def pool(self) -> "Pool":
        """What makes one vector of a window."""
        raise NotImplementedError

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        return self._read(x_BTD, self._compress(x_BTD if memory_BSM is None else memory_BSM, pad_BS)), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        if self.role is Role.ENCODER:
            return super().start(batch, memory_BSM, pad_BS=pad_BS)
        if self.role is Role.CROSS:
            assert memory_BSM is not None
            return StepState(static=self._compress(memory_BSM, pad_BS))
        nothing_B0D = self.out.weight.new_zeros(batch, 0, self.dim)
        key_BHNE, value_BHNE = self._with_null(nothing_B0D, nothing_B0D)
        return StepState(dynamic={"key": key_BHNE, "value": value_BHNE, "keys": nothing_B0D, "values": nothing_B0D})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        """`keys` and `values` wait for the window that they begin; `key` and `value` are of the complete ones."""
        if self.role is Role.CROSS:
            return self._read(x_B1D, state.static), state
        kept = state.dynamic
        keys_BKD = torch.cat([kept["keys"], self.key(x_B1D)], 1)
        values_BKD = torch.cat([kept["values"], self.value(x_B1D)], 1)
        key_BHNE, value_BHNE = kept["key"], kept["value"]
        if keys_BKD.shape[1] == self.kernel:
            key_BHNE = torch.cat([key_BHNE, self.split(self.pool_key(keys_BKD[:, None], None))], 2)
            value_BHNE = torch.cat([value_BHNE, self.split(self.pool_value(values_BKD[:, None], None))], 2)
            keys_BKD, values_BKD = keys_BKD[:, self.stride :], values_BKD[:, self.stride :]
        y_B1D = self._attend(x_B1D, key_BHNE, value_BHNE, None)
        kept = {"key": key_BHNE, "value": value_BHNE, "keys": keys_BKD, "values": values_BKD}
        return y_B1D, state.advance(kept)

    def _compress(self, keys_from_BSM: Tensor, pad_BS: Tensor | None) -> dict[str, Any]:
        """The windows' keys and values, BHNE, after the null key's, and which of them exist in a row, BN."""
        length = keys_from_BSM.shape[1]
        whole = pad_BS is None and self.kernel == self.stride and length % self.stride == 0
        real_BS = torch.ones_like(keys_from_BSM[:1, :, 0], dtype=torch.bool) if pad_BS is None else ~pad_BS
        real_BNK = self._windows(real_BS[..., None], fill=0)[..., 0]

        def pooled(pool: Pool, x_BSD: Tensor) -> Tensor:
            if pad_BS is not None:
                x_BSD = x_BSD.masked_fill(pad_BS[..., None], pool.fill(x_BSD))
            windows_BNKD = self._windows(x_BSD, fill=pool.fill(x_BSD))
            return pool(windows_BNKD, None if whole else real_BNK)  # type: ignore[no-any-return]

        key_BHNE, value_BHNE = self._with_null(
            pooled(self.pool_key, self.key(keys_from_BSM)), pooled(self.pool_value, self.value(keys_from_BSM))
        )
        if pad_BS is None:
            return {"key": key_BHNE, "value": value_BHNE, "exists": None}
        exists_BN = real_BNK.any(-1)
        if self.null is not None:
            exists_BN = torch.cat([real_BS.any(-1, keepdim=True), exists_BN], 1)
        return {"key": key_BHNE, "value": value_BHNE, "exists": exists_BN}

    def _windows(self, x_BSD: Tensor, *, fill: float) -> Tensor:
        """x_BNKD, with `fill` past the end: as many windows as begin within the length."""
        length = x_BSD.shape[1]
        windows = -(-length // self.stride)
        missing = (windows - 1) * self.stride + self.kernel - length
        if missing:
            x_BSD = functional.pad(x_BSD, (0, 0, 0, missing), value=fill)
        if self.kernel == self.stride:
            return x_BSD.view(len(x_BSD), windows, self.kernel, -1)
        return x_BSD.unfold(1, self.kernel, self.stride).transpose(-1, -2)

    def _with_null(self, key_BND: Tensor, value_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Heads split, after the null key's and value's."""
        if self.null is not None:
            null_key_B1D, null_value_B1D = self.null[:, None, None].expand(-1, len(key_BND), -1, -1).to(key_BND.dtype)
            key_BND, value_BND = torch.cat([null_key_B1D, key_BND], 1), torch.cat([null_value_B1D, value_BND], 1)
        return self.split(key_BND), self.split(value_BND)

    def _read(self, x_BTD: Tensor, pooled: dict[str, Any]) -> Tensor:
        seen_BHTN = None if pooled["exists"] is None else pooled["exists"][:, None, None]
        if self.role is Role.CAUSAL:
            complete_TN = self._complete(x_BTD.shape[1], pooled["key"].shape[2], x_BTD.device)
            seen_BHTN = complete_TN if seen_BHTN is None else seen_BHTN & complete_TN
        return self._attend(x_BTD, pooled["key"], pooled["value"], seen_BHTN)

    def _complete(self, length: int, keys: int, device: torch.device) -> Tensor:
        """mask_TN: True where position t sees a key, that of a window that ends at or before t, or the null key."""
        nulls = 0 if self.null is None else 1
        last_N = torch.arange(keys - nulls, device=device) * self.stride + self.kernel - 1
        return torch.arange(length, device=device)[:, None] >= functional.pad(last_N, (nulls, 0))

    def _attend(self, x_BTD: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, seen_BHTN: Tensor | None) -> Tensor:
        dropout = self.config.dropout if self.training else 0.0
        y_BHTE = attend(self.split(self.query(x_BTD)), key_BHNE, value_BHNE, bias=seen_BHTN, dropout=dropout)
        return self.out(self.join(y_BHTE))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MemoryCompressedConfig(QKVConfig):
    """Dot-product attention to keys and values that strided convolutions make fewer: O(T S D / compression) time."""

    compression: int = setting(
        3, at_least=1, help="Positions that become one key and one value: kernel size and stride of the convolutions."
    )


@attentions.register("memory_compressed", MemoryCompressedConfig)
class MemoryCompressedAttention(PooledKeysAttention):
    """softmax(Q conv(K)ᵀ / √E) conv(V) per head (Liu et al. 2018, section 4.2.3), each head convolved by itself.

    Parameters: 2 D² + 2 M D (+ 4 D bias), 2 (D E r + D) of the convolutions (without D if bias=False), where r is
    `compression`, and 2 D of the null key and value where r > 1.
    """

    @staticmethod
    def window(config: Any) -> tuple[int, int]:
        if config.compression < 1:
            raise UserError(f"attention.compression={config.compression} must be at least 1.")
        return config.compression, config.compression

    def pool(self) -> "Pool":
        return ConvolutionPool(self.heads, self.head_dim, kernel=self.kernel, bias=self.config.bias)


@dataclass(frozen=True)
class PooledConfig(QKVConfig):
    """Dot-product attention to the means or maxima of neighbouring keys and values: O(T S D / stride) time."""

    pool: Literal["mean", "max"] = setting("mean", help="How a window is pooled.")
    kernel: int = setting(3, at_least=1, help="Positions in a window.")
    stride: int = setting(
        3, at_least=1, help="Positions from the start of a window to that of the next; at most kernel."
    )


@attentions.register("pooled", PooledConfig)
class PooledAttention(PooledKeysAttention):
    """softmax(Q pool(K)ᵀ / √E) pool(V), pool the mean or, feature by feature, the maximum of what a window holds.

    Parameters: 2 D² + 2 M D (+ 4 D bias), and 2 D of the null key and value where kernel > 1. With windows of one
    position it is softmax attention.
    """

    @staticmethod
    def window(config: Any) -> tuple[int, int]:
        if not 1 <= config.stride <= config.kernel:
            raise UserError(
                f"attention.stride={config.stride} must be from 1 to attention.kernel={config.kernel}, "
                "or positions are left out."
            )
        return config.kernel, config.stride

    def pool(self) -> "Pool":
        return {"mean": MeanPool, "max": MaxPool}[self.config.pool]()


class Pool(nn.Module):
    """Makes one vector of what is real in a window, and some finite one where nothing is."""

    def fill(self, x: Tensor) -> float:
        """What stands in a window where nothing is real."""
        return 0.0

    def forward(self, x_BNKD: Tensor, real_BNK: Tensor | None) -> Tensor:
        """pooled_BND; `real_BNK` None means that all is real."""
        raise NotImplementedError


class MeanPool(Pool):
    """The mean."""

    def forward(self, x_BNKD: Tensor, real_BNK: Tensor | None) -> Tensor:
        return x_BNKD.mean(-2) if real_BNK is None else x_BNKD.sum(-2) / real_BNK.sum(-1, keepdim=True).clamp(min=1)


class MaxPool(Pool):
    """The largest, by feature."""

    def fill(self, x: Tensor) -> float:
        return torch.finfo(x.dtype).min

    def forward(self, x_BNKD: Tensor, real_BNK: Tensor | None) -> Tensor:
        largest_BND = x_BNKD.amax(-2)
        return largest_BND if real_BNK is None else largest_BND.masked_fill(~real_BNK.any(-1, keepdim=True), 0)


class ConvolutionPool(Pool):
    """A linear map of the window, each head by itself: H K E² (+ H E bias) weights."""

    def __init__(self, heads: int, head_dim: int, *, kernel: int, bias: bool) -> None:
        super().__init__()
        bound = math.sqrt(6 / (head_dim * (kernel + 1)))
        self.weight = nn.Parameter(torch.empty(heads, kernel, head_dim, head_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(heads * head_dim)) if bias else None

    def forward(self, x_BNKD: Tensor, real_BNK: Tensor | None) -> Tensor:
        x_BNKHE = x_BNKD.view(*x_BNKD.shape[:3], len(self.weight), -1)
        y_BND = torch.einsum("bnkhe,hkef->bnhf", x_BNKHE, self.weight).flatten(2)
        return y_BND if self.bias is None else y_BND + self.bias
