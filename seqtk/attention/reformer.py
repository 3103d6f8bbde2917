"""LSH attention: softmax among positions with the same hash (Kitaev et al. 2020, Reformer, arXiv 2001.04451).

B batch, T length, D width of the layer, H heads, E width of a head, R rounds of hashing, F half the buckets, S
positions so far, X = B T H rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, State, StepState, attentions
from seqtk.attention.qkv import HeadedAttention, QKVConfig
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.lsh import HashRounds, lsh_attention
from seqtk.ops.tensors import padding_or_zeros, without_autocast
from seqtk.utils.errors import UserError

SELF_MASK_VALUE = -1e5
"""Added to a position's logit for itself, so that it attends to itself only if it sees no other position."""

BUCKET_STRIDE = 2**40
"""The distance between the codes of different buckets. It exceeds the number of positions in any bucket."""


@dataclass(frozen=True)
class ReformerConfig(QKVConfig):
    """Attention between positions of the same hash bucket: 3 D² weights, O(T rounds² chunk + T rounds chunk D) time."""

    buckets: int = setting(
        32,
        at_least=2,
        help="Buckets in a round of hashing, an even number. A good value is the usual length divided by chunk.",
    )
    chunk: int = setting(
        64,
        at_least=1,
        help="Positions in a chunk. A chunk attends to itself and to the previous chunk in bucket order.",
    )
    rounds: int = setting(4, at_least=1, help="Rounds of hashing. More rounds approximate full attention better.")
    redraw: bool = setting(
        True, help="Draw new hash functions in each training pass. Evaluation uses the functions saved with the model."
    )


@attentions.register("reformer", ReformerConfig)
class ReformerAttention(HeadedAttention):
    """Attention to the positions that share a hash bucket with the query in any of R rounds of hashing.

        y_t = softmax(q_t · k_s / √E) v_s        k_s = q_s / |q_s|

    Round r puts position t into bucket argmax [x; -x], x = q_t rotations_r, of `buckets`, and sorts the positions by
    bucket, then by position. ENCODER: t sees the positions of its bucket that are in its chunk of C = `chunk` positions
    in this order, or in the previous chunk (section 2). CAUSAL differs from the paper: t sees the last C positions of
    its bucket, itself included. The paper's chunks would reveal the future, since their start depends on how many later
    positions fall into lower buckets. t sees itself only if it sees no other position. The rounds are combined by their
    logsumexp (appendix A). A pair counts in the first round that finds it, so a position sees the union of the rounds.
    Hashes are computed in float32 or wider, so that rounding moves no position to a different bucket.

    Parameters: 3 D² (+ 3 D bias): `query_key`, `value`, `out`. O(T R (R + D) C) time, O(T (R H + D)) memory. A step
    compares the new position with all earlier ones: O(t (R + D)).
    """

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True
    rotations: Tensor

    def __init__(self, config: ReformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.buckets % 2:
            raise UserError(
                f"attention.buckets={config.buckets}: must be even, because opposite directions are separate buckets."
            )
        self.query_key = self.projection(dim)
        self.value = self.projection(dim)
        self.out = self.projection(dim)
        self.register_buffer("rotations", torch.randn(self.heads, config.rounds, self.head_dim, config.buckets // 2))

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        length = x_BTD.shape[1]
        pad_BT = padding_or_zeros(x_BTD, pad_BS)
        query_BTD, value_BTD = self._project(x_BTD)
        rotations = self.rotations
        if self.training and self.config.redraw:
            # torch.compile would merge several calls of randn_like with the same tensor into one.
            rotations = torch.randn(rotations.shape, dtype=rotations.dtype, device=rotations.device)
        bucket_BHRT = self._buckets(self.split(query_BTD), rotations)
        # Padding has a separate last bucket, so it never comes before a real position.
        bucket_BHRT = torch.where(pad_BT[:, None, None], self.config.buckets, bucket_BHRT)
        chunk = min(self.config.chunk, length)
        if missing := -length % chunk:
            query_BTD, value_BTD = (functional.pad(x, (0, 0, 0, missing)) for x in (query_BTD, value_BTD))
            bucket_BHRT = functional.pad(bucket_BHRT, (0, missing), value=self.config.buckets)
        with without_autocast(x_BTD):
            rounds = HashRounds.sort(bucket_BHRT, chunk=chunk, causal=self.role is Role.CAUSAL)
            query_XE, value_XE = (x.reshape(-1, self.head_dim) for x in (query_BTD, value_BTD))
            y_XE = lsh_attention(query_XE, value_XE, rounds, dropout=self.active_dropout)
        y_BTD = y_XE.view(query_BTD.shape)[:, :length].to(x_BTD.dtype)
        return self.out(y_BTD.masked_fill(pad_BT[..., None], 0)), None

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        shape = batch, self.heads, self.config.rounds, self.config.buckets
        count_BHRF = torch.zeros(shape, dtype=torch.long, device=self.rotations.device)
        return StepState(dynamic={**cache.empty("key", "value", "code"), "count": count_BHRF})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        query_BH1E, value_BH1E = map(self.split, self._project(x_B1D))
        bucket_BHR1 = self._buckets(query_BH1E, self.rotations)
        # The positions of a bucket have consecutive codes.
        code_BH1R = (bucket_BHR1 * BUCKET_STRIDE + state.dynamic["count"].gather(3, bucket_BHR1)).transpose(2, 3)
        key_BH1E = functional.normalize(query_BH1E, dim=-1)
        kept = cache.remember(state.dynamic, key=key_BH1E, value=value_BH1E, code=code_BH1R)
        kept["count"] = kept["count"].scatter_add(3, bucket_BHR1, torch.ones_like(bucket_BHR1))
        since_BHSR = code_BH1R - torch.cat(cache.segments(kept, "code"), 2)
        seen_BHS = ((since_BHSR >= 0) & (since_BHSR < self.config.chunk)).any(3)
        with without_autocast(x_B1D):
            logits_BH1S = cache.compare(query_BH1E, kept).masked_fill(~seen_BHS[:, :, None], -torch.inf)
            logits_BH1S[..., -1] += SELF_MASK_VALUE
            y_BH1E = cache.average(logits_BH1S, kept)
        return self.out(self.join(y_BH1E).to(x_B1D.dtype)), state.advance(kept)

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns query_BTD, which autocast never rounds, and value_BTD in the same dtype."""
        with without_autocast(x_BTD):
            query_BTD: Tensor = self.query_key(x_BTD.to(self.query_key.weight.dtype))
        return query_BTD, self.value(x_BTD).to(query_BTD.dtype)

    def _buckets(self, query_BHTE: Tensor, rotations_HREF: Tensor) -> Tensor:
        """Returns bucket_BHRT, the bucket of each position in each round."""
        with torch.autocast(query_BHTE.device.type, enabled=False), torch.no_grad():
            x_BHRTF = query_BHTE[:, :, None] @ rotations_HREF.to(query_BHTE.dtype)
            return torch.cat([x_BHRTF, -x_BHRTF], -1).argmax(-1)
