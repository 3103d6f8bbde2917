"""Luna: a fixed number of memory slots attend to the sequence, and the sequence attends to them.

B batch, T query length, S length of the context, D width of the layer, M width of the context, H heads, E = D / H,
P memory slots.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Attention, Role, Scope, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.modules.block import Dropout
from seqtk.ops.dot_product import attend, padding_bias
from seqtk.ops.head_checkpoint import OfHeads, Projected, by_heads
from seqtk.ops.scan import causal_sums
from seqtk.utils.errors import UserError

LN2 = math.log(2)


@dataclass(frozen=True)
class LunaConfig(QKVConfig):
    """Attention by way of P memory slots, handed up an encoder: 5 D² weights (untied 7 D²), O(T P D) time."""

    memory_size: int = setting(32, at_least=1, help="Memory slots. Layers of one encoder that share them must agree.")
    tie_kv: bool = setting(True, help="Compute keys and values with one projection.")


@attentions.register("luna", LunaConfig)
class Luna(HeadedAttention):
    """Nested linear attention (Ma et al. 2021, arXiv 2106.01540, sections 3.1 to 3.3), in O(T P) time and memory.

    Pack:   Y = softmax(P Wq' (C Wk')ᵀ / √E) C Wv' per head, where P are the slots and C the context;
    unpack: softmax(X Wq (Y Wk)ᵀ / √E) Y Wv per head, then the output projection. `tie_kv`: Wk' = Wv' and Wk = Wv.

    ENCODER: C = X. The first layer of a stack learns its own P, from N(0, 1); each later one takes LN(P + Y) of the one
    before it. The norm stands at the receiver, so that the last layer has no weights that nothing uses.

    CROSS: C is the memory, packed once; a step then costs O(P D), however long that is. Each layer has its own P.

    CAUSAL: as in the authors' code, the slots' weights of position t are w_t = log2(1 + 2^(P Wq' · x_t Wk' / √E)), with
    no softmax over time; the unpacking keys and values at t are the running means of w_s (x_s Wk) and w_s (x_s Wv). Its
    untied form needs no Wv'. Chunked, with no tensor of size T × P × D; a step costs O(P D). Each layer has its own P.

    Parameters: P D, and 5 D² (+ 5 D bias) tied, 7 D² untied (6 D² CAUSAL); in CROSS one of them (untied two) is D M.
    A layer that follows another has 2 D (of its norm) instead of P D.
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    scope = Scope.LAYER
    subquadratic = True

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.memory_size < 1:
            raise UserError(f"attention.memory_size={config.memory_size} must be at least 1.")
        self.serving = self._serving()
        for name in dict.fromkeys(filter(None, self.serving.values())):
            from_context = role is Role.CROSS and name.startswith("pack_") and name != "pack_query"
            projection = self.projection(self.memory_dim if from_context else dim, gain=1 / math.sqrt(2))
            self.add_module(name, projection)
        self.out = self.projection(dim)
        self.dropout = Dropout(config.dropout)
        self.memory: nn.Parameter | None = nn.Parameter(torch.randn(config.memory_size, dim))
        self.carried_norm: nn.LayerNorm | None = None

    def _serving(self) -> dict[str, str | None]:
        """Which projection serves each use; None where none does, and the heads of its input are taken as they are."""
        tied = self.config.tie_kv
        serving: dict[str, str | None] = {name: name for name in ("pack_query", "pack_key", "query", "key")}
        serving["value"] = "key" if tied else "value"
        if self.role is not Role.CAUSAL:
            serving["pack_value"] = "pack_key" if tied else "pack_value"
        return serving

    def chain_after(self, previous: Attention) -> None:
        if not isinstance(previous, Luna) or previous.config.memory_size != self.config.memory_size:
            kinds = [attentions.name_of(type(layer.config)) for layer in (self, previous)]
            raise UserError(
                f"Attention '{kinds[0]}' cannot take the memory that '{kinds[1]}' before it in the encoder hands on.",
                f"It takes attention.memory_size={self.config.memory_size} slots of Luna or ConvLuna.",
                "Give all of them the same memory_size.",
            )
        self.memory = None
        self.carried_norm = nn.LayerNorm(self.dim)

    def forward(
        self,
        x_BTD: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        pad_BS: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        if self.role is Role.CAUSAL:
            return self._causal(x_BTD, pad_BT=pad_BS), None
        if self.role is Role.CROSS:
            return self._unpack(x_BTD, self.start(len(x_BTD), memory_BSM, pad_BS=pad_BS).static), None
        slots_BPD = self._slots(len(x_BTD), state)
        packed_BPD = self._pack(slots_BPD, x_BTD, pad_BS=pad_BS)
        return self._unpack(x_BTD, self._unpacking(packed_BPD, pad_BS=pad_BS)), slots_BPD + packed_BPD

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        if self.role is Role.CROSS:
            assert memory_BSM is not None
            packed_BPD = self._pack(self._slots(batch, None), memory_BSM, pad_BS=pad_BS)
            return StepState(static=self._unpacking(packed_BPD, pad_BS=pad_BS))
        (pack_query_BHPE,) = self._project(("pack_query",), self._slots(batch, None))
        sums_BHPE = pack_query_BHPE.new_zeros(pack_query_BHPE.shape, dtype=_wide(pack_query_BHPE))
        return StepState(
            static={"pack_query": pack_query_BHPE},
            dynamic={"keys": sums_BHPE, "values": sums_BHPE, "count": sums_BHPE.new_zeros(batch, 1, 1, 1)},
        )

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        if self.role is Role.CROSS:
            return self._unpack(x_B1D, state.static), state
        return self._causal_step(x_B1D, state, self._project(("pack_key", "key", "value"), x_B1D))

    def _project(self, uses: tuple[str, ...], x_BTD: Tensor) -> list[Tensor]:
        """x_BHTE for each use, by the projection that serves it; once for those that share one."""
        names = [self.serving[use] for use in uses]
        by_name = {
            name: self.split(x_BTD if name is None else getattr(self, name)(x_BTD)) for name in dict.fromkeys(names)
        }
        return [by_name[name] for name in names]

    def _slots(self, batch: int, carried_BPD: Tensor | None) -> Tensor:
        """The slots that the context is packed into."""
        if self.carried_norm is not None:
            assert carried_BPD is not None, "A layer that follows another needs what that one carries."
            return cast(Tensor, self.carried_norm(carried_BPD))
        assert self.memory is not None
        return self.memory.expand(batch, -1, -1)

    def _sources(self, uses: tuple[str, ...], x_BTD: Tensor) -> dict[str | None, Tensor | Projected]:
        """What each of the projections that serve the uses is made of."""
        names = dict.fromkeys(self.serving[use] for use in uses)
        return {name: x_BTD if name is None else Projected(x_BTD, getattr(self, name)) for name in names}

    def _read(self, x_BHSE: Tensor, some: slice, pad_BS: Tensor | None) -> Tensor:
        """What the slots read of a projection of some heads."""
        return x_BHSE

    def _read_padding(self, pad_BS: Tensor | None) -> Tensor | None:
        """Where that is padding."""
        return pad_BS

    def _reading(self) -> list[Tensor]:
        """Parameters that reading has, beside the projections."""
        return []

    def _scale(self, part: str) -> float | Tensor:
        """What the logits of `part` ("pack" or "unpack") are multiplied by."""
        return 1 / math.sqrt(self.head_dim)

    def _pack(self, slots_BPD: Tensor, context_BSM: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        """Y, packed_BPD."""
        (query_BHPE,) = self._project(("pack_query",), slots_BPD)
        query_BHPE = query_BHPE * self._scale("pack")
        uses = "pack_key", "pack_value"
        sources, bias = self._sources(uses, context_BSM), padding_bias(self._read_padding(pad_BS))

        def pack(some: slice, *projected: Tensor) -> Tensor:
            read = {name: self._read(self.split(x), some, pad_BS) for name, x in zip(sources, projected, strict=True)}
            key_BHSE, value_BHSE = (read[self.serving[use]] for use in uses)
            return self.join(self._attend(query_BHPE[:, some], key_BHSE, value_BHSE, bias))

        return self._some_heads_at_a_time(pack, sources, query_BHPE)

    def _some_heads_at_a_time(
        self, function: OfHeads, sources: dict[str | None, Tensor | Projected], *through: Tensor | float
    ) -> Tensor:
        is_random = self.training and self.dropout.rate > 0
        tensors = [tensor for tensor in (*through, *self._reading()) if isinstance(tensor, Tensor)]
        return by_heads(function, *sources.values(), heads=self.heads, through=tensors, is_random=is_random)

    def _unpacking(self, packed_BPD: Tensor, *, pad_BS: Tensor | None) -> dict[str, Tensor]:
        """The keys and values that queries find in the slots; values of 0 in rows that see nothing."""
        key_BHPE, value_BHPE = self._project(("key", "value"), packed_BPD)
        if pad_BS is not None:
            value_BHPE = value_BHPE.masked_fill(pad_BS.all(1)[:, None, None, None], 0)
        return {"key": key_BHPE, "value": value_BHPE}

    def _unpack(self, x_BTD: Tensor, unpacking: dict[str, Tensor]) -> Tensor:
        y_BHTE = self._attend(self._query(x_BTD), unpacking["key"], unpacking["value"])
        return cast(Tensor, self.out(self.join(y_BHTE)))

    def _query(self, x_BTD: Tensor) -> Tensor:
        """The unpacking queries, scaled."""
        return self._project(("query",), x_BTD)[0] * self._scale("unpack")

    def _attend(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, bias: Tensor | None = None) -> Tensor:
        dropout = self.dropout.rate if self.training else 0.0
        return attend(query_BHTE, key_BHSE, value_BHSE, bias=bias, dropout=dropout, scale=1.0)

    def _causal(self, x_BTD: Tensor, *, pad_BT: Tensor | None) -> Tensor:
        (pack_query_BHPE,) = self._project(("pack_query",), self._slots(len(x_BTD), None))
        pack_query_BHPE = pack_query_BHPE.to(_wide(pack_query_BHPE)) * self._scale("pack")
        scale, sources = self._scale("unpack"), self._sources(("query", "pack_key", "key", "value"), x_BTD)
        if pad_BT is None:
            count = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)[:, None]
        else:
            count = (~pad_BT).cumsum(1).clamp(min=1)[:, None, :, None]

        def pack_and_unpack(some: slice, query_BTD: Tensor, *projected: Tensor) -> Tensor:
            query_BHTE, (_, *names) = self.split(query_BTD) * scale, sources
            read = {name: self._read(self.split(x), some, pad_BT) for name, x in zip(names, projected, strict=True)}
            pack_key_BHTE, key_BHTE, value_BHTE = (read[self.serving[use]] for use in ("pack_key", "key", "value"))
            weight_BHTP = self._pack_weights(pack_query_BHPE[:, some], pack_key_BHTE)
            if pad_BT is not None:
                weight_BHTP = weight_BHTP.masked_fill(pad_BT[:, None, :, None], 0)
            logits_BHTP = causal_sums(query_BHTE, key_BHTE, weight_BHTP) / count
            unpacking_BHTP = self.dropout(logits_BHTP.softmax(-1))
            return self.join(causal_sums(unpacking_BHTP, weight_BHTP, value_BHTE) / count)

        y_BTD = self._some_heads_at_a_time(pack_and_unpack, sources, pack_query_BHPE, scale)
        return cast(Tensor, self.out(y_BTD.to(x_BTD.dtype)))

    def _causal_step(self, x_B1D: Tensor, state: StepState, context: list[Tensor]) -> tuple[Tensor, StepState]:
        """The output and the state after one more position, whose pack key, key and value, BH1E, are `context`."""
        pack_key_BH1E, key_BH1E, value_BH1E = context
        pack_query_BHPE = state.static["pack_query"]
        pack_query_BHPE = pack_query_BHPE.to(_wide(pack_query_BHPE)) * self._scale("pack")
        weight_BHP1 = self._pack_weights(pack_query_BHPE, pack_key_BH1E).transpose(-1, -2)
        sums = {
            **state.dynamic,
            "keys": state.dynamic["keys"] + weight_BHP1 * key_BH1E,
            "values": state.dynamic["values"] + weight_BHP1 * value_BH1E,
            "count": state.dynamic["count"] + 1,
        }
        query_BH1E = self._query(x_B1D)
        with torch.autocast(x_B1D.device.type, enabled=False):
            logits_BH1P = query_BH1E.to(_wide(query_BH1E)) @ sums["keys"].transpose(-1, -2) / sums["count"]
            y_BH1E = logits_BH1P.softmax(-1) @ sums["values"] / sums["count"]
        return self.out(self.join(y_BH1E).to(x_B1D.dtype)), state.advance(sums)

    def _pack_weights(self, pack_query_BHPE: Tensor, pack_key_BHTE: Tensor) -> Tensor:
        """weight_BHTP = log2(1 + 2^logit), in float32 or wider; queries are scaled."""
        wide = _wide(pack_key_BHTE)
        with torch.autocast(pack_key_BHTE.device.type, enabled=False):
            logits_BHTP = pack_key_BHTE.to(wide) @ pack_query_BHPE.transpose(-1, -2)
        weight_BHTP = functional.softplus(logits_BHTP, beta=LN2, threshold=40)
        return cast(Tensor, self.dropout(weight_BHTP))


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums over the past."""
    return torch.promote_types(x.dtype, torch.float32)
