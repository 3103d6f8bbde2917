"""Attention with logits other than dot products, softmax(logits) V, computed one block of queries at a time.

The logits are described by a `LogitSpec`: tensors with a row for each query, tensors with a column for each key, tables
with both, and a function that combines them. The logits of a Synthesizer (Tay et al. 2021, arXiv 2005.00743) and of its
mixtures are of this form.

Where it runs: on a CPU, inputs longer than SHORT positions are computed in blocks, and the backward pass computes the
logits of each block again. Only one block of logits exists at a time, and the only T × S tensors are parameters. A
causal block ends at its last query, which saves half the work. On other devices, for short inputs and under
torch.compile, `_at_once` computes all logits together. Without dropout, rows that have the same logits share one matrix
product.

B batch, T query length, S key length, H heads, E width of a head, C queries of a block, X any width.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqtk.ops.dispatch import naive_mode
from seqtk.ops.dot_product import causal_mask, padding_bias
from seqtk.ops.dropout import drop_again, random_bits, scaled
from seqtk.ops.dropout import dropout as apply_dropout
from seqtk.ops.tensors import once_for

BLOCK = 2**22
"""The approximate number of logits in a block. Smaller blocks raise thread contention."""

SHORT = 256
"""Inputs up to this length are computed at once, because blocks would not make them faster."""

MIN_ROWS = 32
"""The smallest number of queries in a block. Matrix products with fewer rows are slow."""


class LogitTensors(NamedTuple):
    """The tensors from which logits are computed. Each has four dimensions: B or 1 first, H second."""

    by_query: tuple[Tensor, ...] = ()  # ...TX
    by_key: tuple[Tensor, ...] = ()  # ...XS
    by_both: tuple[Tensor, ...] = ()  # ...TS, or with more columns

    def flat(self) -> tuple[Tensor, ...]:
        """Returns all tensors in one tuple."""
        return self.by_query + self.by_key + self.by_both

    def like(self, flat: Iterable[Tensor]) -> "LogitTensors":
        """Groups a flat sequence of tensors like the tensors of `self`. This is the inverse of `flat`."""
        others = iter(flat)
        return LogitTensors(*(tuple(itertools.islice(others, len(group))) for group in self))


Combine = Callable[[LogitTensors, int], Tensor]


@dataclass(frozen=True)
class LogitSpec:
    """A specification of logits: tensors, and the function that computes the logits from them.

    `combine(tensors, columns)` returns the logits, BHTS or 1HTS, of some queries for the keys 0 … `columns` - 1. It
    receives only the rows of these queries and the columns of these keys.
    """

    combine: Combine
    tensors: LogitTensors

    def logits(self, columns: int) -> Tensor:
        """Returns the logits of all queries for the first `columns` keys."""
        by_both = tuple(logits[..., :columns] for logits in self.tensors.by_both)
        return self.combine(self.tensors._replace(by_both=by_both), columns)

    def scaled(self, weight: Tensor | float) -> "LogitSpec":
        """Returns a specification of the logits times `weight`, which broadcasts to HTS.

        The logits must be a table, or linear in the first query tensor.
        """
        if not self.is_table:
            first, *rest = self.tensors.by_query
            return LogitSpec(self.combine, self.tensors._replace(by_query=(first * weight, *rest)))
        # Scale each block separately: a table is large, and some of its columns may not be needed.
        logits = self.tensors.by_both[0]
        if logits.shape[2] <= SHORT and isinstance(weight, Tensor):
            return LogitSpec(table, LogitTensors(by_both=(logits * weight.to(logits.dtype),)))
        weight_1HT1 = torch.as_tensor(weight, dtype=logits.dtype, device=logits.device).expand(*logits.shape[:3], 1)
        return LogitSpec(_scaled_table, self.tensors._replace(by_query=(weight_1HT1,)))

    def cast(self, dtype: torch.dtype) -> "LogitSpec":
        """Returns a copy of the specification with tensors converted to `dtype`."""
        return LogitSpec(self.combine, self.tensors.like(tensor.to(dtype) for tensor in self.tensors.flat()))

    @property
    def is_table(self) -> bool:
        """True if the logits already exist as a tensor."""
        return self.combine is table

    @property
    def batch(self) -> int:
        """The batch size of the logits: 1 if they are the same for all rows."""
        return max(len(tensor) for tensor in self.tensors.by_query + self.tensors.by_both)


def table(tensors: LogitTensors, columns: int) -> Tensor:
    """Returns logits that already exist as a tensor. Used as `LogitSpec.combine`."""
    return tensors.by_both[0]


def _scaled_table(tensors: LogitTensors, columns: int) -> Tensor:
    return tensors.by_both[0] * tensors.by_query[0]


def sum_logits(terms: Sequence[LogitSpec]) -> LogitSpec:
    """Returns a specification of the sum of the logits of `terms`."""
    terms = sorted(terms, key=lambda term: -term.batch)

    def combine(tensors: LogitTensors, columns: int) -> Tensor:
        groups = [iter(group) for group in tensors]
        total: Tensor | None = None
        for term in terms:
            own = LogitTensors(*(tuple(itertools.islice(i, len(g))) for i, g in zip(groups, term.tensors, strict=True)))
            if total is None:
                total = term.combine(own, columns)
                total = total.clone() if term.is_table else total
            else:
                total += term.combine(own, columns)
        assert total is not None
        return total

    groups = zip(*(term.tensors for term in terms), strict=True)
    return LogitSpec(combine, LogitTensors(*(tuple(itertools.chain(*group)) for group in groups)))


def naive(
    spec: LogitSpec,
    value_BHSE: Tensor,
    *,
    pad_BS: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Computes softmax(logits) V with all weights at once. The output is 0 for a query that sees no key."""
    length, dtype = value_BHSE.shape[2], torch.promote_types(value_BHSE.dtype, torch.float32)
    with torch.autocast(value_BHSE.device.type, enabled=False):
        logits_BHTS = spec.cast(dtype).logits(length)
        seen = torch.ones(length, length, dtype=torch.bool, device=value_BHSE.device)
        seen = seen.tril() if causal else seen
        seen = seen if pad_BS is None else seen & ~pad_BS[:, None, None, :]
        logits_BHTS = logits_BHTS.masked_fill(~seen, torch.finfo(dtype).min)
        weights_BHTS = logits_BHTS.softmax(-1).masked_fill(~seen, 0).expand(len(value_BHSE), -1, -1, -1)
        if dropout:
            weights_BHTS = apply_dropout(weights_BHTS, dropout)
        return (weights_BHTS @ value_BHSE.to(dtype)).to(value_BHSE.dtype)


def blockwise_softmax(
    spec: LogitSpec,
    value_BHSE: Tensor,
    *,
    pad_BS: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    block: int = BLOCK,
) -> Tensor:
    """Computes softmax(logits) V over the visible keys, BHTE, in blocks of about `block` logits.

    The output is 0 for a query that sees no key. Padding must be at the end of a row. On a CPU it computes in float32
    even under autocast, as dot-product attention does.
    """
    device, length = value_BHSE.device, value_BHSE.shape[2]
    if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            spec, value_BHSE = spec.cast(torch.float32), value_BHSE.float()
            return blockwise_softmax(spec, value_BHSE, pad_BS=pad_BS, causal=causal, dropout=dropout, block=block)
    if naive_mode():
        return naive(spec, value_BHSE, pad_BS=pad_BS, causal=causal, dropout=dropout)
    alike = (spec.batch == 1 < len(value_BHSE) or spec.is_table) and not dropout
    # Logits shared by all rows are few, and the logits of a table exist already.
    all_at_once = length <= SHORT or (alike and not causal)
    if all_at_once or device.type != "cpu" or torch.compiler.is_compiling():
        return _at_once(spec.logits(length), value_BHSE, pad_BS=pad_BS, causal=causal, dropout=dropout)
    return _in_blocks(spec, value_BHSE, pad_BS=pad_BS, causal=causal, dropout=dropout, block=block, alike=alike)


def _in_blocks(
    spec: LogitSpec,
    value_BHSE: Tensor,
    *,
    pad_BS: Tensor | None,
    causal: bool,
    dropout: float,
    block: int,
    alike: bool,
) -> Tensor:
    batch, heads, length = value_BHSE.shape[:3]
    side_by_side = alike and pad_BS is None
    if side_by_side:  # one product per head, of its matrix with the values of all rows
        value_BHSE = value_BHSE.permute(1, 2, 0, 3).flatten(2)[None]
    seed = int(torch.randint(2**62, ())) if dropout else 0
    blocks = list(_blocks(value_BHSE, size=block, causal=causal))
    plan = _Plan(spec, blocks, length, causal, pad_BS, dropout, seed)
    y_BHTE: Tensor = _InBlocks.apply(plan, value_BHSE, *spec.tensors.flat())  # type: ignore[no-untyped-call]
    if side_by_side:
        y_BHTE = y_BHTE.view(heads, length, batch, -1).permute(2, 0, 1, 3)
    if pad_BS is None:
        return y_BHTE
    nothing_seen_BT = pad_BS.cummin(1).values if causal else pad_BS.all(1, keepdim=True)
    return y_BHTE.masked_fill(nothing_seen_BT[:, None, :, None], 0)


def attention_mask(pad_BS: Tensor | None, *, causal: bool, length: int, device: torch.device) -> Tensor | None:
    """Returns a mask of padding and the future, broadcastable to BHTS, True where seen, or None if all is seen."""
    if causal and pad_BS is None:
        return causal_mask(length, device)[None, None]
    return padding_bias(pad_BS, causal_length=length if causal else None)


def _at_once(
    logits_BHTS: Tensor, value_BHSE: Tensor, *, pad_BS: Tensor | None, causal: bool, dropout: float = 0.0
) -> Tensor:
    """Computes `blockwise_softmax` from all logits, BHTS, or 1HTS if they are the same for all rows."""
    length, device = value_BHSE.shape[2], value_BHSE.device
    if pad_BS is not None and not causal and _can_share(logits_BHTS, value_BHSE) and not dropout:
        y_BHTE = _with_shared_logits(logits_BHTS[0], value_BHSE, ~pad_BS)
        if y_BHTE is not None:
            return y_BHTE
    hidden = None if pad_BS is None else pad_BS[:, None, None]
    if causal:
        future_TS = (_future if torch.compiler.is_compiling() else _cached_future)(length, device)
        hidden = future_TS if hidden is None else hidden | future_TS
    if hidden is not None:
        logits_BHTS = logits_BHTS.masked_fill(hidden, torch.finfo(logits_BHTS.dtype).min)
    weights_BHTS = logits_BHTS.softmax(-1)
    if dropout:
        weights_BHTS = apply_dropout(weights_BHTS.expand(len(value_BHSE), -1, -1, -1), dropout)
    weights_BHTS = weights_BHTS.to(value_BHSE.dtype)
    if len(weights_BHTS) == 1:  # one product per head, of its matrix with the values of all rows side by side
        y_BHTE = torch.einsum("hts,bhse->bhte", weights_BHTS[0], value_BHSE)
    else:
        y_BHTE = weights_BHTS @ value_BHSE
    if pad_BS is None or hidden is None:  # then each query sees at least its own position
        return y_BHTE
    nothing_seen = hidden.all(-1, keepdim=True) if causal else padding_only(pad_BS)
    return y_BHTE.masked_fill(nothing_seen, 0)


def padding_only(pad_BS: Tensor) -> Tensor:
    """Returns a mask, B111, True for rows without a token. All layers of a model share it."""
    return once_for("padding only", pad_BS, lambda: pad_BS.all(1)[:, None, None, None])


def _future(length: int, device: torch.device) -> Tensor:
    """Returns a mask, TS, True where position t may not see position s: s > t."""
    return ~causal_mask(length, device)


@lru_cache(maxsize=32)
def _cached_future(length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached mask is used in training too
        return _future(length, device)


def _can_share(logits_BHTS: Tensor, value_BHSE: Tensor) -> bool:
    """Returns True if `_with_shared_logits` can be used and is faster.

    It is faster on a CPU from about 64 positions on. On a CPU, reading a result back costs no synchronization.
    """
    if torch.compiler.is_compiling():  # a compiled graph cannot branch on the value of a tensor
        return False
    return len(logits_BHTS) == 1 and value_BHSE.shape[2] >= 64 and value_BHSE.device.type == "cpu"


def _with_shared_logits(logits_HTS: Tensor, value_BHSE: Tensor, seen_BS: Tensor) -> Tensor | None:
    """Computes attention for rows that differ only in padding: they share exp(logits), but not its sum over s.

    Returns None if the exponentials of a row's tokens underflow because padding has much larger logits.
    """
    exp_HTS = (logits_HTS - logits_HTS.detach().amax(-1, keepdim=True)).exp()
    seen_BS = seen_BS.to(exp_HTS.dtype)
    sum_BHT = torch.einsum("hts,bs->bht", exp_HTS, seen_BS)
    nothing_seen_B11 = seen_BS.sum(-1)[:, None, None] == 0
    if torch.where(nothing_seen_B11, 1, sum_BHT).min() < 1e-20:
        return None
    y_BHTE = torch.einsum("hts,bhse->bhte", exp_HTS, value_BHSE * seen_BS[:, None, :, None])
    return y_BHTE / torch.where(nothing_seen_B11, 1, sum_BHT)[..., None]


@dataclass(frozen=True)
class _Block:
    """A block of logits: a range of heads, a range of queries, and the keys that these queries may see."""

    heads: slice
    rows: slice
    columns: slice


def _blocks(value_BHSE: Tensor, *, size: int, causal: bool) -> Iterator[_Block]:
    """Yields blocks of about `size` logits: as many queries as fit (causal: at most 1/8 of all), then as many heads."""
    batch, heads, length = value_BHSE.shape[:3]
    most_rows = min(length, max(size // (batch * length), MIN_ROWS))
    if causal:
        most_rows = min(most_rows, max(length // 8, 2 * MIN_ROWS))
    most_heads = min(heads, max(size // (batch * length * most_rows), 1))
    for head in range(0, heads, most_heads):
        for row in range(0, length, most_rows):
            rows = slice(row, min(row + most_rows, length))
            yield _Block(slice(head, head + most_heads), rows, slice(0, rows.stop if causal else length))


@dataclass(frozen=True)
class _Plan:
    """The arguments of `_InBlocks` that have no gradient."""

    spec: LogitSpec
    blocks: list[_Block]
    length: int
    causal: bool
    pad_BS: Tensor | None
    dropout: float
    seed: int

    def slices(self, block: _Block) -> list[Any]:
        """Returns the slices of a block for each of the tensors from which logits are computed."""
        every = slice(None)
        kinds = (
            (every, block.heads, block.rows),
            (every, block.heads, every, block.columns),
            (every, block.heads, block.rows, block.columns),
        )
        return [place for group, place in zip(self.spec.tensors, kinds, strict=True) for _ in group]

    def logits(self, pieces: Sequence[Tensor], block: _Block) -> Tensor:
        """Returns the logits of a block, computed from its slices of the tensors."""
        return self.spec.combine(self.spec.tensors.like(pieces), block.columns.stop)

    def masked(self, logits_BHCS: Tensor, block: _Block) -> Tensor:
        """Returns the logits without a gradient, and with a very low number where a query does not see a key.

        May change `logits_BHCS` in place, unless the logits are a table.
        """
        logits_BHCS = logits_BHCS.detach()
        if self.spec.is_table and (self.causal or self.pad_BS is not None):
            logits_BHCS = logits_BHCS.clone()
        lowest = torch.finfo(logits_BHCS.dtype).min / 2
        if self.causal:
            own_BHCC = logits_BHCS[..., block.rows]
            own_BHCC.masked_fill_(~causal_mask(own_BHCC.shape[-1], own_BHCC.device), lowest)
        if self.pad_BS is not None:
            pad_B11S = self.pad_BS[:, None, None, block.columns]
            one_for_all = len(logits_BHCS) < len(pad_B11S)
            fill = logits_BHCS.masked_fill if one_for_all else logits_BHCS.masked_fill_
            logits_BHCS = fill(pad_B11S, lowest)
        return logits_BHCS

    def bits(self, weights_BHCS: Tensor, block: _Block, batch: int) -> Tensor | None:
        """Returns the random bits for a block's dropout, the same in forward and backward, or None without dropout."""
        if not self.dropout:
            return None
        # torch's generator reads 32 bits of its seed, so the block numbers must be small.
        first = block.heads.start * self.length + block.rows.start
        generator = torch.Generator().manual_seed(self.seed + first)
        return random_bits(weights_BHCS.expand(batch, -1, -1, -1), generator=generator)

    def dropped(self, x_BHCS: Tensor, bits_BHCS: Tensor | None) -> Tensor:
        """Applies dropout to weights or their gradient. Without dropout, returns `x_BHCS` unchanged."""
        if bits_BHCS is None:
            return x_BHCS
        return scaled(drop_again(x_BHCS.expand_as(bits_BHCS), bits_BHCS, self.dropout), self.dropout)


class _InBlocks(torch.autograd.Function):
    """Computes softmax(logits) V over the visible keys. The backward pass computes the logits of each block again."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, value_BHSE: Tensor, *inputs: Tensor) -> Tensor:
        y_BHTE = torch.empty_like(value_BHSE)
        for block in plan.blocks:
            pieces = [tensor[place] for tensor, place in zip(inputs, plan.slices(block), strict=True)]
            weights_BHCS = plan.masked(plan.logits(pieces, block), block).softmax(-1)
            kept_BHCS = plan.dropped(weights_BHCS, plan.bits(weights_BHCS, block, len(value_BHSE)))
            y_BHTE[:, block.heads, block.rows] = kept_BHCS @ value_BHSE[:, block.heads, block.columns]
        ctx.plan = plan
        ctx.save_for_backward(value_BHSE, *inputs)
        return y_BHTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        value_BHSE, *inputs = ctx.saved_tensors
        batch, grad_BHTE = len(value_BHSE), grad_BHTE.contiguous()
        _, needs_value, *needed = ctx.needs_input_grad
        value_grad = torch.zeros_like(value_BHSE) if needs_value else None
        wanted = [i for i, need in enumerate(needed) if need]
        is_key = [group == 1 for group, tensors in enumerate(plan.spec.tensors) for _ in tensors]
        # Each query is in one block only, so its gradient is assigned, not added.
        grads = {i: (torch.zeros_like if is_key[i] else torch.empty_like)(inputs[i]) for i in wanted}
        value_BHES = value_BHSE.transpose(-1, -2).contiguous()
        for block in plan.blocks:
            places = plan.slices(block)
            pieces = [
                tensor.detach()[place].requires_grad_(need)
                for tensor, place, need in zip(inputs, places, needed, strict=True)
            ]
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                logits_BHCS = plan.logits(pieces, block)
                seen_BHCS = plan.masked(logits_BHCS, block).requires_grad_()
                weights_BHCS = seen_BHCS.softmax(-1)
            grad_BHCE = grad_BHTE[:, block.heads, block.rows]
            bits_BHCS = plan.bits(weights_BHCS, block, batch)
            if value_grad is not None:
                kept_BHCS = plan.dropped(weights_BHCS.detach(), bits_BHCS)
                value_grad[:, block.heads, block.columns] += kept_BHCS.transpose(-1, -2) @ grad_BHCE
            if wanted:
                weights_grad_BHCS = grad_BHCE @ value_BHES[:, block.heads, :, block.columns]
                weights_grad_BHCS = plan.dropped(weights_grad_BHCS, bits_BHCS).sum_to_size(weights_BHCS.shape)
                (logits_grad_BHCS,) = torch.autograd.grad(weights_BHCS, seen_BHCS, weights_grad_BHCS)
                logits_grad_BHCS = logits_grad_BHCS.sum_to_size(logits_BHCS.shape)
                found = torch.autograd.grad(logits_BHCS, [pieces[i] for i in wanted], logits_grad_BHCS)
                for i, part in zip(wanted, found, strict=True):
                    if is_key[i]:
                        grads[i][places[i]] += part
                    else:
                        of_rows = grads[i][places[i][:3]]
                        of_rows[..., : part.shape[-1]] = part
                        of_rows[..., part.shape[-1] :] = 0
        return None, value_grad, *map(grads.get, range(len(inputs)))
