"""Luna: a fixed number of memory slots attend to the context, and the queries attend to the slots.

Ma et al. 2021, arXiv 2106.01540.

B batch, T query length, S length of the context, D width of the layer, M width of the context, H heads, E = D / H,
P memory slots.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.attention.base import Attention, Role, Scope, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops.dot_product import attend, padding_bias
from seqtk.ops.dropout import dropout
from seqtk.ops.head_checkpoint import LazyProjection, OfHeads, checkpoint_over_heads
from seqtk.ops.scan import causal_sums
from seqtk.ops.tensors import to_fp32, without_autocast
from seqtk.utils.errors import UserError

LN2 = math.log(2)


@dataclass(frozen=True)
class LunaConfig(QKVConfig):
    """Attention through P memory slots: 5 D² weights (7 D² with tie_kv=false), O(T P D) time."""

    memory_size: int = setting(
        32, at_least=1, help="Memory slots. Layers of one encoder that share them must have the same number."
    )
    tie_kv: bool = setting(True, help="Compute keys and values with one projection.")


@attentions.register("luna", LunaConfig)
class Luna(HeadedAttention):
    """Luna's nested attention (sections 3.1 to 3.3), in O(T P) time and memory.

    Pack:   Y = softmax(P Wq' (C Wk')ᵀ / √E) C Wv' per head, where P are the slots and C the context;
    unpack: softmax(X Wq (Y Wk)ᵀ / √E) Y Wv per head, then the output projection. `tie_kv`: Wk' = Wv' and Wk = Wv.

    ENCODER: C = X. The first layer of a stack learns P, initialized from N(0, 1). The slots of each later layer are
    LN(P + Y) of the previous layer. The norm is part of the later layer, so the last layer has no unused weights.

    CROSS: C is the memory, packed once, so a step costs O(P D) at any memory length. Each layer learns P.

    CAUSAL: as in the authors' code, the slots' weights of position t are w_t = log2(1 + 2^(P Wq' · x_t Wk' / √E)), with
    no softmax over time; the unpacking keys and values at t are the running means of w_s (x_s Wk) and w_s (x_s Wv).
    This form has no Wv'. It is computed in chunks, without a tensor of size T × P × D. A step costs O(P D). Each layer
    learns P.

    Parameters: P D, and 5 D² (+ 5 D bias) tied, 7 D² untied (6 D² CAUSAL); in CROSS one of these matrices (untied: two)
    has D M weights instead of D². A layer that receives the previous layer's slots has 2 D (the norm) instead of P D.
    """

    roles = Role.ENCODER | Role.CAUSAL | Role.CROSS
    scope = Scope.LAYER
    subquadratic = True

    def __init__(self, config: Any, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.names = self.projection_names()
        for name in dict.fromkeys(filter(None, self.names.values())):
            reads_memory = role is Role.CROSS and name in ("pack_key", "pack_value")
            self.add_module(name, self.projection(self.memory_dim if reads_memory else dim, gain=1 / math.sqrt(2)))
        self.out = self.projection(dim)
        self.memory: nn.Parameter | None = nn.Parameter(torch.randn(config.memory_size, dim))
        self.carried_norm: nn.LayerNorm | None = None

    def projection_names(self) -> dict[str, str | None]:
        """Returns a dict from each use, such as "pack_key", to the name of its projection.

        The name is None if the input is split into heads without a projection.
        """
        tied = self.config.tie_kv
        names: dict[str, str | None] = {name: name for name in ("pack_query", "pack_key", "query", "key")}
        names["value"] = "key" if tied else "value"
        if self.role is not Role.CAUSAL:
            names["pack_value"] = "pack_key" if tied else "pack_value"
        return names

    def chain_after(self, previous: Attention) -> None:
        if not isinstance(previous, Luna) or previous.config.memory_size != self.config.memory_size:
            kinds = [attentions.name_of(type(layer.config)) for layer in (self, previous)]
            raise UserError(
                f"Attention '{kinds[0]}' cannot use the memory slots of the layer before it, '{kinds[1]}'.",
                f"The layer before it must be luna or convluna with attention.memory_size={self.config.memory_size}.",
                "Set the same memory_size in all of these layers.",
            )
        self.memory = None
        self.carried_norm = nn.LayerNorm(self.dim)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        if self.role is Role.CAUSAL:
            return self.causal(x_BTD, pad_BT=pad_BS), None
        if self.role is Role.CROSS:
            return self.unpack(x_BTD, self.start(len(x_BTD), memory_BSM, pad_BS=pad_BS).static), None
        slots_BPD = self.slots(len(x_BTD), state)
        packed_BPD = self.pack(slots_BPD, x_BTD, pad_BS=pad_BS)
        return self.unpack(x_BTD, self.packed_heads(packed_BPD, pad_BS=pad_BS)), slots_BPD + packed_BPD

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        if memory_BSM is not None:
            packed_BPD = self.pack(self.slots(batch), memory_BSM, pad_BS=pad_BS)
            return StepState(static=self.packed_heads(packed_BPD, pad_BS=pad_BS))
        (pack_query_BHPE,) = self.project(("pack_query",), self.slots(batch))
        sums_BHPE = torch.zeros_like(to_fp32(pack_query_BHPE))
        return StepState(
            static={"pack_query": pack_query_BHPE},
            dynamic={"keys": sums_BHPE, "values": sums_BHPE, "count": sums_BHPE.new_zeros(batch, 1, 1, 1)},
        )

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        if self.role is Role.CROSS:
            return self.unpack(x_B1D, state.static), state
        return self.causal_step(x_B1D, state, self.project(("pack_key", "key", "value"), x_B1D))

    def slots(self, batch: int, state_BPD: Tensor | None = None) -> Tensor:
        """Returns P, the slots before packing: the norm of the previous layer's slots, or the learned slots."""
        if self.carried_norm is not None:
            assert state_BPD is not None, "the state of the previous layer is required"
            return cast(Tensor, self.carried_norm(state_BPD))
        assert self.memory is not None
        return self.memory.expand(batch, -1, -1)

    def pack(self, slots_BPD: Tensor, context_BSM: Tensor, *, pad_BS: Tensor | None) -> Tensor:
        """Returns the packed slots Y, packed_BPD."""
        (query_BHPE,) = self.project(("pack_query",), slots_BPD)
        query_BHPE, bias = query_BHPE * self.scale("pack"), padding_bias(self.filtered_padding(pad_BS))

        def mix(heads: slice, key_BHSE: Tensor, value_BHSE: Tensor) -> Tensor:
            return self.attend(query_BHPE[:, heads], key_BHSE, value_BHSE, bias)

        return self.over_heads(mix, ("pack_key", "pack_value"), context_BSM, query_BHPE, pad_BS=pad_BS)

    def packed_heads(self, packed_BPD: Tensor, *, pad_BS: Tensor | None) -> dict[str, Tensor]:
        """Returns the keys and values of the packed slots. The values are 0 in rows that are all padding."""
        key_BHPE, value_BHPE = self.project(("key", "value"), packed_BPD)
        if pad_BS is not None:
            value_BHPE = value_BHPE.masked_fill(pad_BS.all(1)[:, None, None, None], 0)
        return {"key": key_BHPE, "value": value_BHPE}

    def unpack(self, x_BTD: Tensor, packed: dict[str, Tensor]) -> Tensor:
        (query_BHTE,) = self.project(("query",), x_BTD)
        y_BHTE = self.attend(query_BHTE * self.scale("unpack"), packed["key"], packed["value"])
        return cast(Tensor, self.out(self.join(y_BHTE)))

    def causal(self, x_BTD: Tensor, *, pad_BT: Tensor | None) -> Tensor:
        (pack_query_BHPE,) = self.project(("pack_query",), self.slots(len(x_BTD)))
        pack_query_BHPE = to_fp32(pack_query_BHPE) * self.scale("pack")
        scale = self.scale("unpack")
        count_T1 = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)[:, None]

        def mix(heads: slice, query_BHTE: Tensor, pack_key: Tensor, key_BHTE: Tensor, value_BHTE: Tensor) -> Tensor:
            weight_BHTP = self.pack_weights(pack_query_BHPE[:, heads], pack_key)
            if pad_BT is not None:
                weight_BHTP = weight_BHTP.masked_fill(pad_BT[:, None, :, None], 0)
            logits_BHTP = causal_sums(query_BHTE * scale, key_BHTE, weight_BHTP) / count_T1
            unpacking_BHTP = dropout(logits_BHTP.softmax(-1), self.active_dropout)
            return causal_sums(unpacking_BHTP, weight_BHTP, value_BHTE) / count_T1

        uses = ("query", "pack_key", "key", "value")
        y_BTD = self.over_heads(mix, uses, x_BTD, pack_query_BHPE, scale, pad_BS=pad_BT)
        return cast(Tensor, self.out(y_BTD.to(x_BTD.dtype)))

    def causal_step(self, x_B1D: Tensor, state: StepState, context: list[Tensor]) -> tuple[Tensor, StepState]:
        """Computes a decoding step in the causal role. `context` is the pack key, key and value, each BH1E."""
        pack_key_BH1E, key_BH1E, value_BH1E = context
        pack_query_BHPE = to_fp32(state.static["pack_query"]) * self.scale("pack")
        weight_BHP1 = self.pack_weights(pack_query_BHPE, pack_key_BH1E).mT
        sums = {
            **state.dynamic,
            "keys": state.dynamic["keys"] + weight_BHP1 * key_BH1E,
            "values": state.dynamic["values"] + weight_BHP1 * value_BH1E,
            "count": state.dynamic["count"] + 1,
        }
        query_BH1E = self.project(("query",), x_B1D)[0] * self.scale("unpack")
        with without_autocast(x_B1D):
            logits_BH1P = to_fp32(query_BH1E) @ sums["keys"].mT / sums["count"]
            y_BH1E = logits_BH1P.softmax(-1) @ sums["values"] / sums["count"]
        return self.out(self.join(y_BH1E).to(x_B1D.dtype)), state.advance(sums)

    def pack_weights(self, pack_query_BHPE: Tensor, pack_key_BHTE: Tensor) -> Tensor:
        """Returns weight_BHTP = log2(1 + 2^logit), in float32 or wider. The queries must be scaled already."""
        with without_autocast(pack_key_BHTE):
            logits_BHTP = to_fp32(pack_key_BHTE) @ pack_query_BHPE.mT
        return dropout(functional.softplus(logits_BHTP, beta=LN2, threshold=40), self.active_dropout)

    def attend(self, query_BHTE: Tensor, key_BHSE: Tensor, value_BHSE: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns softmax(Q Kᵀ + bias) V. The queries must be scaled already."""
        return attend(query_BHTE, key_BHSE, value_BHSE, bias=bias, dropout=self.active_dropout, scale=1.0)

    def project(self, uses: tuple[str, ...], x_BTD: Tensor) -> list[Tensor]:
        """Returns the input projected for each use, x_BHTE. Uses with the same projection share one tensor."""
        names = [self.names[use] for use in uses]
        heads = {
            name: self.split(x_BTD if name is None else getattr(self, name)(x_BTD)) for name in dict.fromkeys(names)
        }
        return [heads[name] for name in names]

    def over_heads(
        self, mix: OfHeads, uses: tuple[str, ...], x_BSM: Tensor, *read: Tensor | float, pad_BS: Tensor | None
    ) -> Tensor:
        """Returns y_BTD, the outputs of `mix(heads, *projected_BHSE)`, computed for a few heads at a time.

        `mix` receives the projection of `x_BSM` for each of `uses`. All but the queries are `filtered`. `read` has the
        other tensors that `mix` reads.
        """
        names = list(dict.fromkeys(self.names[use] for use in uses))

        def mix_joined(heads: slice, *projected: Tensor) -> Tensor:
            of = dict(zip(names, map(self.split, projected), strict=True))
            of |= {name: self.filtered(x_BHSE, heads, pad_BS) for name, x_BHSE in of.items() if name != "query"}
            return self.join(mix(heads, *(of[self.names[use]] for use in uses)))

        return checkpoint_over_heads(
            mix_joined,
            *(x_BSM if name is None else LazyProjection(x_BSM, getattr(self, name)) for name in names),
            heads=self.heads,
            extra_params=[tensor for tensor in (*read, *self.filter_parameters()) if isinstance(tensor, Tensor)],
            is_random=self.active_dropout > 0,
        )

    def scale(self, part: str) -> float | Tensor:
        """Returns the factor of the logits of "pack" or "unpack"."""
        return 1 / math.sqrt(self.head_dim)

    def filtered(self, x_BHSE: Tensor, heads: slice, pad_BS: Tensor | None) -> Tensor:
        """Returns the keys or values that the slots attend to, for a slice of the heads."""
        return x_BHSE

    def filtered_padding(self, pad_BS: Tensor | None) -> Tensor | None:
        """Returns the padding mask of `filtered`'s output."""
        return pad_BS

    def filter_parameters(self) -> Iterable[Tensor]:
        """Returns the parameters that `filtered` reads."""
        return ()
