"""Attention among positions that hash alike (Kitaev et al. 2020, Reformer, arXiv 2001.04451).

B batch, T length, D width of the layer, H heads, E width of a head, R rounds of hashing, F half the buckets, S
positions so far, X = B T H rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqtk.attention.base import Role, StepState, attentions
from seqtk.attention.qkv import QKVConfig
from seqtk.config.fields import setting
from seqtk.ops import cache
from seqtk.ops.block_pattern import PatternAttention, absent
from seqtk.ops.lsh import Rounds, attend
from seqtk.utils.errors import UserError

ALONE = -1e5
"""Added to the logit of a position with itself, so that it counts only where nothing else is seen."""

FAR = 2**40
"""Between the numbers of positions of different buckets: more than the positions of one."""


@dataclass(frozen=True)
class ReformerConfig(QKVConfig):
    """Attention among positions that hash alike: 3 D² weights, O(T rounds² chunk + T rounds chunk D) time."""

    buckets: int = setting(
        32, at_least=2, help="Buckets of a round of hashing; even. About the usual length divided by chunk."
    )
    chunk: int = setting(
        64,
        at_least=1,
        help="Positions that attend to each other, and to as many before them in the order of the buckets.",
    )
    rounds: int = setting(4, at_least=1, help="Rounds of hashing. More come closer to full attention.")
    redraw: bool = setting(True, help="Draw new hashes at each training step. Evaluation has one hash, which is saved.")


@attentions.register("reformer", ReformerConfig)
class ReformerAttention(PatternAttention):
    """softmax(q_t · k_s / √E) v_s over the s in the union of what R rounds find, with shared q, k_s = q_s / |q_s|.

    Round r puts t into bucket argmax [x; -x], x = q_t rotations_r, of `buckets`, and sorts by bucket, then position.
    ENCODER: t sees those of its bucket that are in its chunk of C = `chunk` places of that order, or in the chunk
    before (section 2; no chunk is before the first). CAUSAL is ours: t sees the last C positions of its bucket, itself
    among them. The paper's chunks would not do: where they begin depends on how many later positions fall into lower
    buckets, so that what is seen of the past would tell of the future. t sees itself only if there is nothing else. The
    rounds are combined by their logsumexp (appendix A); a pair counts in the first round that has it, so that what is
    seen is their union. Hashes are computed in float32 or wider, lest rounding move a position.

    Parameters: 3 D² (+ 3 D bias): `query_key`, `value`, `out`. O(T R (R + D) C) time, O(T (R H + D)) memory.
    A step compares the new position with all before: O(t (R + D)).
    """

    roles = Role.ENCODER | Role.CAUSAL
    subquadratic = True
    rotations: Tensor

    def __init__(self, config: ReformerConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        if config.buckets % 2:
            raise UserError(
                f"attention.buckets={config.buckets} must be even: a direction and its opposite are a pair."
            )
        self.query_key = self.projection(dim)
        self.value = self.projection(dim)
        self.out = self.projection(dim)
        self.register_buffer("rotations", torch.randn(self.heads, config.rounds, self.head_dim, config.buckets // 2))

    def mix(self, x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
        absent_BT = absent(x_BTD, pad_BT)
        query_BTD, value_BTD = self._project(x_BTD)
        rotations_HREF = self.rotations
        if self.training and self.config.redraw:
            rotations_HREF = torch.randn_like(rotations_HREF)
        bucket_BHRT = self._buckets(self.split(query_BTD), rotations_HREF)
        # Padding goes to a bucket of its own, the last; so it takes no place before a position that exists.
        bucket_BHRT = torch.where(absent_BT[:, None, None], self.config.buckets, bucket_BHRT)
        length = x_BTD.shape[1]
        chunk = min(self.config.chunk, length)
        missing = -length % chunk
        if missing:
            query_BTD, value_BTD = (functional.pad(x, (0, 0, 0, missing)) for x in (query_BTD, value_BTD))
            bucket_BHRT = functional.pad(bucket_BHRT, (0, missing), value=self.config.buckets)
        with torch.autocast(x_BTD.device.type, enabled=False):
            rounds = Rounds.sort(bucket_BHRT, chunk=chunk, causal=self.role is Role.CAUSAL)
            query_XE, value_XE = (x.reshape(-1, self.head_dim) for x in (query_BTD, value_BTD))
            y_XE = attend(query_XE, value_XE, rounds, dropout=self.active_dropout)
        return y_XE.view(query_BTD.shape)[:, :length].to(x_BTD.dtype)

    def start(self, batch: int, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None) -> StepState:
        none_BHRF = torch.zeros(
            batch, self.heads, self.config.rounds, self.config.buckets, dtype=torch.long, device=self.rotations.device
        )
        return StepState(dynamic={**cache.empty("key", "value", "code"), "count": none_BHRF})

    def step(self, x_B1D: Tensor, state: StepState) -> tuple[Tensor, StepState]:
        query_BH1E, value_BH1E = map(self.split, self._project(x_B1D))
        bucket_BHR1 = self._buckets(query_BH1E, self.rotations)
        code_BHR1 = bucket_BHR1 * FAR + state.dynamic["count"].gather(
            3, bucket_BHR1
        )  # of a bucket, numbered in their order
        kept = cache.remember(state.dynamic, key=_unit(query_BH1E), value=value_BH1E, code=code_BHR1.transpose(2, 3))
        kept["count"] = kept["count"].scatter_add(3, bucket_BHR1, torch.ones_like(bucket_BHR1))
        since_BHSR = code_BHR1.transpose(2, 3) - torch.cat(cache.segments(kept, "code"), 2)
        seen_BHS = ((since_BHSR >= 0) & (since_BHSR < self.config.chunk)).any(3)
        with torch.autocast(x_B1D.device.type, enabled=False):  # as in the parallel form
            logits_BH1S = cache.compare(query_BH1E, kept).masked_fill(~seen_BHS[:, :, None], -torch.inf)
            logits_BH1S[..., -1] += ALONE
            y_BH1E = cache.average(logits_BH1S, kept)
        return self.out(self.join(y_BH1E).to(x_B1D.dtype)), state.advance(kept)

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


def _unit(x_BHTE: Tensor) -> Tensor:
    return functional.normalize(x_BHTE, dim=-1)
