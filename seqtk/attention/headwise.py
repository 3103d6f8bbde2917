"""The base class of layers whose heads do not interact. It saves memory on long inputs.

B batch, T query length, S key length, D width of the layer, M width of the memory, H heads, E width of a head.
"""

from collections.abc import Iterable

from torch import Tensor

from seqtk.attention.base import State
from seqtk.attention.qkv import QKVAttention
from seqtk.ops.head_checkpoint import LazyProjection, checkpoint_over_heads

ALL_HEADS = slice(None)


class HeadwiseAttention(QKVAttention):
    """Base class of layers whose heads do not interact before the output projection.

    On long inputs a few heads are computed at a time, together with their projections, and computed again in the
    backward pass (`seqtk/ops/head_checkpoint.py`).
    """

    def mix_heads(
        self, heads: slice, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None
    ) -> Tensor:
        """Computes `mix` for a slice of the heads."""
        raise NotImplementedError

    def mix_parameters(self) -> Iterable[Tensor]:
        """Returns the parameters that `mix_heads` reads."""
        return ()

    @property
    def is_random(self) -> bool:
        """True if `mix_heads` draws random numbers, so that recomputing it would give a different result."""
        return self.active_dropout > 0

    def sources(self, x_BTD: Tensor, source_BSM: Tensor) -> tuple[Tensor | LazyProjection, ...]:
        """Returns query_BTD, key_BSD and value_BSD, or the projections that compute them for a few heads at a time."""
        return tuple(
            LazyProjection(x, linear)
            for x, linear in ((x_BTD, self.query), (source_BSM, self.key), (source_BSM, self.value))
        )

    def mix(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        return self.mix_heads(ALL_HEADS, query_BHTE, key_BHSE, value_BHSE, pad_BS=pad_BS)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        source = x_BTD if memory_BSM is None else memory_BSM
        self.check_length(max(x_BTD.shape[1], source.shape[1]))

        def mix(heads: slice, *projected: Tensor) -> Tensor:
            return self.join(self.mix_heads(heads, *map(self.split, projected), pad_BS=pad_BS))

        y_BTD = checkpoint_over_heads(
            mix,
            *self.sources(x_BTD, source),
            heads=self.heads,
            extra_params=tuple(self.mix_parameters()),
            is_random=self.is_random,
        )
        return self.out(y_BTD), None
