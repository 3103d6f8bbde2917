"""softmax(logits) V where the logits are not those of the fused kernel: a block of queries at a time.

The logits of a layer are made of `Factors`: tensors with a row for each query, tensors with a column for each key. On a
CPU only a block of them is there at once, made again in the backward pass, so that no T × S tensor lives but those that
are parameters; and a causal layer's block ends with its last query, which saves half the work.

B batch, T query length, S key length, H heads, E width of a head, C queries of a block, X any width.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqtk.ops import dropout as drop
from seqtk.ops.dot_product import causal_mask, padding_bias

BLOCK = 2**22
"""Logits of a block, about. Smaller ones are a little faster, but of so many that threads wait for one another."""

SHORT = 256
"""Up to this length nothing is gained by blocks."""

LEAST_ROWS = 32
"""Queries of a block at least, lest its products be mere vectors'."""


class Tensors(NamedTuple):
    """What logits are made of; each tensor has four dimensions, B or 1 first, H second."""

    by_query: tuple[Tensor, ...] = ()  # ...TX
    by_key: tuple[Tensor, ...] = ()  # ...XS
    by_both: tuple[Tensor, ...] = ()  # ...TS, or with more columns

    def flat(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.by_query + self.by_key + self.by_both

    def like(self, flat: Iterable[Tensor]) -> "Tensors":
        """Others in the places of these."""
        others = iter(flat)
        return Tensors(*(tuple(itertools.islice(others, len(group))) for group in self))


Combine = Callable[[Tensors, int], Tensor]


@dataclass(frozen=True)
class Factors:
    """Tensors, and how logits are made of them.

    `combine` gives the logits, BHTS or 1HTS, of some queries for the keys at 0 … `columns` - 1. It gets the rows of
    these queries alone, and the columns of these keys alone.
    """

    combine: Combine
    tensors: Tensors

    def logits(self, columns: int) -> Tensor:
        """All of them."""
        by_both = tuple(logits[..., :columns] for logits in self.tensors.by_both)
        return self.combine(self.tensors._replace(by_both=by_both), columns)

    def scaled(self, weight: Tensor | float) -> "Factors":
        """Those of the logits times `weight`, which broadcasts to HTS: they are linear in the first tensor by query."""
        if not self.is_table:
            first, *rest = self.tensors.by_query
            return Factors(self.combine, self.tensors._replace(by_query=(first * weight, *rest)))
        # A table is large, and not all of it may be needed: its parts are scaled where they are.
        logits = self.tensors.by_both[0]
        weight_1HT1 = torch.as_tensor(weight, dtype=logits.dtype, device=logits.device).expand(*logits.shape[:3], 1)
        return Factors(_scaled_table, self.tensors._replace(by_query=(weight_1HT1,)))

    def cast(self, dtype: torch.dtype) -> "Factors":
        """In another type."""
        return Factors(self.combine, self.tensors.like(tensor.to(dtype) for tensor in self.tensors.flat()))

    @property
    def is_table(self) -> bool:
        """Whether they are there already."""
        return self.combine is table

    @property
    def batch(self) -> int:
        """1 where they are the same for all rows."""
        return max(len(tensor) for tensor in self.tensors.by_query + self.tensors.by_both)


def table(tensors: Tensors, columns: int) -> Tensor:
    """Logits that are there."""
    return tensors.by_both[0]


def _scaled_table(tensors: Tensors, columns: int) -> Tensor:
    return tensors.by_both[0] * tensors.by_query[0]


def added_up(terms: Sequence[Factors]) -> Factors:
    """The factors of the sum of some logits."""
    terms = sorted(terms, key=lambda term: -term.batch)

    def combine(tensors: Tensors, columns: int) -> Tensor:
        groups = [iter(group) for group in tensors]
        total: Tensor | None = None
        for term in terms:
            own = Tensors(*(tuple(itertools.islice(i, len(g))) for i, g in zip(groups, term.tensors, strict=True)))
            if total is None:
                total = term.combine(own, columns)
                total = total.clone() if term.is_table else total
            elif term.combine is _scaled_table:  # in one go
                total.addcmul_(own.by_both[0], own.by_query[0])
            else:
                total += term.combine(own, columns)
        assert total is not None
        return total

    groups = zip(*(term.tensors for term in terms), strict=True)
    return Factors(combine, Tensors(*(tuple(itertools.chain(*group)) for group in groups)))


def weigh(
    factors: Factors,
    value_BHSE: Tensor,
    *,
    pad_BS: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    block: int = BLOCK,
) -> Tensor:
    """softmax(logits where seen) V, about `block` logits at a time; a query that sees nothing gets 0.

    In float32 on a CPU even under autocast, as is dot-product attention.
    """
    device, length = value_BHSE.device, value_BHSE.shape[2]
    if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            factors, value_BHSE = factors.cast(torch.float32), value_BHSE.float()
            return weigh(factors, value_BHSE, pad_BS=pad_BS, causal=causal, dropout=dropout, block=block)
    batch, heads = value_BHSE.shape[:2]
    alike = (factors.batch == 1 < batch or factors.is_table) and not dropout
    in_one = length <= SHORT or (alike and not causal)  # the same logits for all rows are few, a table's are there
    if in_one or device.type != "cpu" or torch.compiler.is_compiling():
        seen = seen_of(pad_BS, causal=causal, length=length, device=device)
        return weigh_at_once(factors.logits(length), value_BHSE, seen=seen, dropout=dropout)
    side_by_side = alike and pad_BS is None
    if side_by_side:  # one product per head, of its matrix with the values of all rows
        value_BHSE = value_BHSE.permute(1, 2, 0, 3).flatten(2)[None]
    seed = int(torch.randint(2**62, ())) if dropout else 0
    blocks = list(_blocks(value_BHSE, size=block, causal=causal))
    how = _How(factors, blocks, causal, pad_BS, dropout, seed)
    y_BHTE: Tensor = _InBlocks.apply(how, value_BHSE, *factors.tensors.flat())  # type: ignore[no-untyped-call]
    if side_by_side:
        y_BHTE = y_BHTE.view(heads, length, batch, -1).permute(2, 0, 1, 3)
    if pad_BS is None:
        return y_BHTE
    nothing_seen_BT = pad_BS.cummin(1).values if causal else pad_BS.all(1, keepdim=True)
    return y_BHTE.masked_fill(nothing_seen_BT[:, None, :, None], 0)


def seen_of(pad_BS: Tensor | None, *, causal: bool, length: int, device: torch.device) -> Tensor | None:
    """The mask, True where seen and of a shape that broadcasts to BHTS, of padding and the future."""
    if causal and pad_BS is None:
        return causal_mask(length, device)[None, None]
    return padding_bias(pad_BS, causal_length=length if causal else None)


def weigh_at_once(
    logits_BHTS: Tensor, value_BHSE: Tensor, *, seen: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """As `weigh`, of logits that are there, BHTS, or 1HTS where they are the same for all rows."""
    if _can_share(logits_BHTS, value_BHSE, seen) and not dropout:
        y_BHTE = _weigh_alike(logits_BHTS[0], value_BHSE, seen[:, 0, 0])  # type: ignore[index]
        if y_BHTE is not None:
            return y_BHTE
    if seen is not None:
        logits_BHTS = logits_BHTS.masked_fill(~seen, torch.finfo(logits_BHTS.dtype).min)
    weights_BHTS = logits_BHTS.softmax(-1)
    if dropout:
        weights_BHTS = drop.dropout(weights_BHTS.expand(len(value_BHSE), -1, -1, -1), dropout)
    weights_BHTS = weights_BHTS.to(value_BHSE.dtype)
    if len(weights_BHTS) == 1:  # one product per head, of its matrix with the values of all rows side by side
        y_BHTE = torch.einsum("hts,bhse->bhte", weights_BHTS[0], value_BHSE)
    else:
        y_BHTE = weights_BHTS @ value_BHSE
    return y_BHTE if seen is None else y_BHTE.masked_fill(~seen.any(-1, keepdim=True), 0)


def _can_share(logits_BHTS: Tensor, value_BHSE: Tensor, seen: Tensor | None) -> bool:
    """Whether rows that differ only in their padding are better weighed by `_weigh_alike`.

    It pays from some 64 positions on, and where it costs nothing to look at a result: on a CPU.
    """
    only_padding = seen is not None and seen.shape[1:3] == (1, 1)
    return only_padding and len(logits_BHTS) == 1 and value_BHSE.shape[2] >= 64 and value_BHSE.device.type == "cpu"


def _weigh_alike(logits_HTS: Tensor, value_BHSE: Tensor, seen_BS: Tensor) -> Tensor | None:
    """Where rows differ only in their padding: exp(logits) is the same for all rows, only its sum over s is not.

    None where the largest logits all belong to padding, and those of some row's own tokens are so far below that their
    exponentials are lost.
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
    """Some queries of some heads, and the keys that they may see."""

    heads: slice
    rows: slice
    columns: slice


def _blocks(value_BHSE: Tensor, *, size: int, causal: bool) -> Iterator[_Block]:
    """As many queries of a head as may be, up to all (causal: an eighth), and then as many heads."""
    batch, heads, length = value_BHSE.shape[:3]
    most_rows = min(length, max(size // (batch * length), LEAST_ROWS))
    if causal:
        most_rows = min(most_rows, max(length // 8, 2 * LEAST_ROWS))
    most_heads = min(heads, max(size // (batch * length * most_rows), 1))
    for head in range(0, heads, most_heads):
        for row in range(0, length, most_rows):
            rows = slice(row, min(row + most_rows, length))
            yield _Block(slice(head, head + most_heads), rows, slice(0, rows.stop if causal else length))


@dataclass(frozen=True)
class _How:
    """What `_InBlocks` is asked for, beside tensors with gradients."""

    factors: Factors
    blocks: list[_Block]
    causal: bool
    pad_BS: Tensor | None
    dropout: float
    seed: int

    def places(self, block: _Block) -> list[Any]:
        """Which part of each of the factors' tensors belongs to a block."""
        every = slice(None)
        kinds = (
            (every, block.heads, block.rows),
            (every, block.heads, every, block.columns),
            (every, block.heads, block.rows, block.columns),
        )
        return [place for group, place in zip(self.factors.tensors, kinds, strict=True) for _ in group]

    def logits(self, pieces: Sequence[Tensor], block: _Block) -> Tensor:
        """Of a block's parts of the tensors."""
        return self.factors.combine(self.factors.tensors.like(pieces), block.columns.stop)

    def seen(self, logits_BHCS: Tensor, block: _Block) -> Tensor:
        """The logits where seen, next to -∞ elsewhere, without a gradient; in the place of those given, if they may."""
        logits_BHCS = logits_BHCS.detach()
        if self.factors.is_table and (self.causal or self.pad_BS is not None):
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

    def dropped(self, weights_BHCS: Tensor, block: _Block, batch: int) -> Tensor:
        """Without what dropout takes, the same each time; BHCS then, or 1HCS without dropout."""
        if not self.dropout:
            return weights_BHCS
        generator = torch.Generator().manual_seed(self.seed + block.heads.start * 2**32 + block.rows.start)
        weights_BHCS = weights_BHCS.expand(batch, -1, -1, -1)
        return weights_BHCS * drop.keep_mask(weights_BHCS, self.dropout, generator=generator)


class _InBlocks(torch.autograd.Function):
    """softmax(logits where seen) V, whose backward pass makes the logits of each block anew."""

    @staticmethod
    def forward(ctx: Any, how: _How, value_BHSE: Tensor, *inputs: Tensor) -> Tensor:
        y_BHTE = torch.empty_like(value_BHSE)
        for block in how.blocks:
            pieces = [tensor[place] for tensor, place in zip(inputs, how.places(block), strict=True)]
            weights_BHCS = how.seen(how.logits(pieces, block), block).softmax(-1)
            kept_BHCS = how.dropped(weights_BHCS, block, len(value_BHSE))
            y_BHTE[:, block.heads, block.rows] = kept_BHCS @ value_BHSE[:, block.heads, block.columns]
        ctx.how = how
        ctx.save_for_backward(value_BHSE, *inputs)
        return y_BHTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> tuple[Tensor | None, ...]:
        how: _How = ctx.how
        value_BHSE, *inputs = ctx.saved_tensors
        batch, grad_BHTE = len(value_BHSE), grad_BHTE.contiguous()
        _, needs_value, *needed = ctx.needs_input_grad
        value_grad = torch.zeros_like(value_BHSE) if needs_value else None
        wanted = [i for i, need in enumerate(needed) if need]
        is_key = [group == 1 for group, tensors in enumerate(how.factors.tensors) for _ in tensors]
        # A query is in one block, so that its gradient need not be summed up.
        grads = {i: (torch.zeros_like if is_key[i] else torch.empty_like)(inputs[i]) for i in wanted}
        value_BHES = value_BHSE.transpose(-1, -2).contiguous()
        for block in how.blocks:
            places = how.places(block)
            pieces = [
                tensor.detach()[place].requires_grad_(need)
                for tensor, place, need in zip(inputs, places, needed, strict=True)
            ]
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                logits_BHCS = how.logits(pieces, block)
                seen_BHCS = how.seen(logits_BHCS, block).requires_grad_()
                weights_BHCS = seen_BHCS.softmax(-1)
            grad_BHCE = grad_BHTE[:, block.heads, block.rows]
            if value_grad is not None:
                kept_BHCS = how.dropped(weights_BHCS.detach(), block, batch)
                value_grad[:, block.heads, block.columns] += kept_BHCS.transpose(-1, -2) @ grad_BHCE
            if wanted:
                by_weight_BHCS = grad_BHCE @ value_BHES[:, block.heads, :, block.columns]
                by_weight_BHCS = how.dropped(by_weight_BHCS, block, batch).sum_to_size(weights_BHCS.shape)
                (by_logit_BHCS,) = torch.autograd.grad(weights_BHCS, seen_BHCS, by_weight_BHCS)
                by_logit_BHCS = by_logit_BHCS.sum_to_size(logits_BHCS.shape)
                found = torch.autograd.grad(logits_BHCS, [pieces[i] for i in wanted], by_logit_BHCS)
                for i, part in zip(wanted, found, strict=True):
                    if is_key[i]:
                        grads[i][places[i]] += part
                    else:
                        of_rows = grads[i][places[i][:3]]
                        of_rows[..., : part.shape[-1]] = part
                        of_rows[..., part.shape[-1] :] = 0
        return None, value_grad, *map(grads.get, range(len(inputs)))
