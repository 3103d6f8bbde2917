"""Attention among positions that hash alike (Kitaev et al. 2020, Reformer, arXiv 2001.04451).

B batch, T length, D width of the layer, H heads, E width of a head, R rounds of hashing, F half the buckets, N chunks
of C positions, K = 2 C keys that a chunk sees.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import HeadedConfig, Role, State, attentions
from seqtk.attention.parts import cache
from seqtk.attention.parts.blocks import in_blocks, with_neighbours
from seqtk.attention.parts.building import check_at_least_one
from seqtk.attention.parts.pattern import PatternAttention, absent
from seqtk.errors import UserError
from seqtk.modules.dropout import Dropout

ALONE = -1e5
"""Added to the logit of a position with itself, so that it counts only where nothing else is seen."""

FAR = 2**40
"""Between the numbers of positions of different buckets: more than the positions of one."""


@dataclass(frozen=True)
class ReformerConfig(HeadedConfig):
    """Attention among positions that hash alike: 3 D² weights, O(T rounds² chunk + T rounds chunk D) time."""

    buckets: int = 32  # of a round of hashing, an even number: about the usual length over `chunk`
    chunk: int = 64  # positions that attend together, and to as many before them in the order of the buckets
    rounds: int = 4  # of hashing; more come nearer to full attention
    redraw: bool = True  # the hash anew at each training step; evaluation has one hash, which is saved


@attentions.register("reformer", ReformerConfig)
class ReformerAttention(PatternAttention):
    """softmax(q_t · k_s / √E) v_s over the s in the union of what R rounds find, with shared q, k_s = q_s / |q_s|.

    Round r puts t into bucket argmax [x; -x], x = q_t rotations_r, of `buckets`, and sorts by bucket, then position.
    ENCODER: t sees those of its bucket that are in its chunk of C = `chunk` places of that order, or in the chunk
    before (section 2; no chunk is before the first). CAUSAL is ours: t sees the last C positions of its bucket, itself
    among them. The paper's chunks would not do: where they begin depends on how many later positions fall into lower
    buckets, so that what is seen of the past would tell of the future. t sees itself only if there is nothing else. The
    rounds are combined by their logsumexp, each logit less log(number of rounds that have the pair), so that what is
    seen is their union (appendix A). Hashes are computed in float32 or wider, lest rounding move a position.

    Parameters: 3 D² (+ 3 D bias): `query_key`, `value`, `out`. O(T R (R + D) C) time, O(T R (C H + D)) memory.
    A step compares the new position with all before: O(t (R + D)).
    """

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True
    rotations: Tensor

    def __init__(self, config: ReformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        check_at_least_one(config, "buckets", "chunk", "rounds")
        if config.buckets % 2:
            raise UserError(
                f"attention.buckets={config.buckets} must be even: a direction and its opposite are a pair."
            )
        self.query_key = self.projection(dim)
        self.value = self.projection(dim)
        self.out = self.projection(dim)
        self.register_buffer("rotations", torch.randn(self.heads, config.rounds, self.head_dim, config.buckets // 2))

    @classmethod
    def parameter_count(cls, config: Any, *, dim: int, memory_dim: int | None = None) -> int:
        return int(3 * dim * (dim + config.bias))

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        absent_BT = absent(x_BTD, pad_BT)
        query_BTD, value_BTD = self._project(x_BTD)
        rotations_HREF = self.rotations
        if self.training and self.config.redraw:
            rotations_HREF = torch.randn_like(rotations_HREF)

        def attend_by_bucket(some: slice, query_BTD: Tensor, value_BTD: Tensor) -> Tensor:
            query_BHTE = self.split(query_BTD)
            bucket_BHRT = self._buckets(query_BHTE, rotations_HREF[some])
            # Padding goes to a bucket of its own, the last; so it takes no place before a position that exists.
            bucket_BHRT = torch.where(absent_BT[:, None, None], self.config.buckets, bucket_BHRT)
            with torch.autocast(x_BTD.device.type, enabled=False):
                return self.join(self._attend_by_bucket(query_BHTE, self.split(value_BTD), bucket_BHRT))

        return self.some_heads_at_a_time(attend_by_bucket, query_BTD, value_BTD).to(x_BTD.dtype)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> State:
        none_BHRF = torch.zeros(
            batch, self.heads, self.config.rounds, self.config.buckets, dtype=torch.long, device=self.rotations.device
        )
        return {**cache.empty("key", "value", "code"), "count": none_BHRF}

    def step(self, x_B1D: Tensor, state: State) -> tuple[Tensor, State]:
        query_BH1E, value_BH1E = map(self.split, self._project(x_B1D))
        bucket_BHR1 = self._buckets(query_BH1E, self.rotations)
        code_BHR1 = bucket_BHR1 * FAR + state["count"].gather(3, bucket_BHR1)  # of a bucket, numbered in their order
        state = cache.remember(state, key=_unit(query_BH1E), value=value_BH1E, code=code_BHR1.transpose(2, 3))
        state["count"] = state["count"].scatter_add(3, bucket_BHR1, torch.ones_like(bucket_BHR1))
        since_BHSR = code_BHR1.transpose(2, 3) - torch.cat(cache.segments(state, "code"), 2)
        seen_BHS = ((since_BHSR >= 0) & (since_BHSR < self.config.chunk)).any(3)
        logits_BH1S = cache.compare(query_BH1E, state).masked_fill(~seen_BHS[:, :, None], -torch.inf)
        logits_BH1S[..., -1] += ALONE
        return self.out(self.join(cache.average(logits_BH1S, state)).to(x_B1D.dtype)), state

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """query_BTD, not rounded by autocast, and value_BTD of the same type."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            query_BTD: Tensor = self.query_key(x_BTD.to(self.query_key.weight.dtype))
        return query_BTD, self.value(x_BTD).to(query_BTD.dtype)

    def _buckets(self, query_BHTE: Tensor, rotations_HREF: Tensor) -> Tensor:
        """bucket_BHRT of each position in each round."""
        with torch.autocast(query_BHTE.device.type, enabled=False), torch.no_grad():
            x_BHRTF = query_BHTE[:, :, None] @ rotations_HREF.to(query_BHTE.dtype)
            return torch.cat([x_BHRTF, -x_BHRTF], -1).argmax(-1)

    def _attend_by_bucket(self, query_BHTE: Tensor, value_BHTE: Tensor, bucket_BHRT: Tensor) -> Tensor:
        """y_BHTE, finite for padding."""
        length, rounds = query_BHTE.shape[2], self.config.rounds
        chunk = min(self.config.chunk, length)
        order_BHRT = bucket_BHRT.argsort(dim=-1, stable=True)  # the position at each place
        place_BHRT = order_BHRT.argsort(dim=-1)  # the place of each position

        def sort(x_BHT: Tensor, fill: float = 0) -> Tensor:
            """x_BHRNC (and any dimensions after T), in each round's order."""
            x_BHRT = x_BHT[:, :, None].expand(-1, -1, rounds, *x_BHT.shape[2:])
            index = order_BHRT.view(*order_BHRT.shape, *[1] * (x_BHT.dim() - 3))
            x_MT = x_BHRT.take_along_dim(index, 3).flatten(0, 2)
            return in_blocks(x_MT, chunk, fill=fill).view(*order_BHRT.shape[:3], -1, chunk, *x_BHT.shape[3:])

        def keys(x_BHRNC: Tensor, fill: float = 0) -> Tensor:
            """x_BHRNK: each chunk after the one before it."""
            flat = x_BHRNC.flatten(0, 2)
            return with_neighbours(flat, before=1, after=0, fill=fill).view(*x_BHRNC.shape[:4], -1, *x_BHRNC.shape[5:])

        own, count_BHRNCK = [], torch.zeros((), dtype=torch.uint8, device=query_BHTE.device)
        code_BHRT, reach = self._codes(bucket_BHRT, place_BHRT, chunk)
        for finder in range(rounds):  # whether this round has the pair, whichever round's chunk the pair is in
            code_BHRNC = sort(code_BHRT[:, :, finder], fill=-(2**30))
            ahead_BHRNCK = code_BHRNC[..., :, None] - keys(code_BHRNC, fill=-(2**30))[..., None, :]
            found = (ahead_BHRNCK >= 0) & (ahead_BHRNCK < reach)
            own.append(found[:, :, finder])
            count_BHRNCK = count_BHRNCK + found.byte()
        place_C = torch.arange(chunk, device=query_BHTE.device)
        itself_CK = place_C[:, None] + chunk == torch.arange(2 * chunk, device=query_BHTE.device)
        bias_BHRNCK = itself_CK * ALONE - count_BHRNCK.clamp(min=1).to(query_BHTE.dtype).log()
        bias_BHRNCK = bias_BHRNCK.masked_fill(~torch.stack(own, 2), torch.finfo(query_BHTE.dtype).min / 2)

        query_BHRNCE = sort(query_BHTE)
        products_BHRNCK = query_BHRNCE @ keys(sort(_unit(query_BHTE))).transpose(-1, -2)
        logits_BHRNCK = products_BHRNCK * self.head_dim**-0.5 + bias_BHRNCK
        total_BHRNC = logits_BHRNCK.logsumexp(-1)
        weights_BHRNCK = Dropout(self.active_dropout)((logits_BHRNCK - total_BHRNC[..., None]).exp())
        y_BHRNCE = weights_BHRNCK @ keys(sort(value_BHTE))

        y_BHRTE = y_BHRNCE.flatten(3, 4).take_along_dim(place_BHRT[..., None], 3)
        share_BHRT = total_BHRNC.flatten(3).take_along_dim(place_BHRT, 3).softmax(2)
        return torch.einsum("bhrt,bhrte->bhte", share_BHRT, y_BHRTE)

    def _codes(self, bucket_BHRT: Tensor, place_BHRT: Tensor, chunk: int) -> tuple[Tensor, int]:
        """One number a position, and the reach: query sees key where 0 <= query's - key's < reach."""
        causal = self.role is Role.CAUSAL
        reach = chunk if causal else 2
        far = bucket_BHRT.shape[3] + reach  # between buckets
        return (bucket_BHRT * far + (place_BHRT if causal else place_BHRT // chunk)).int(), reach


def _unit(x_BHTE: Tensor) -> Tensor:
    return functional.normalize(x_BHTE, dim=-1)
