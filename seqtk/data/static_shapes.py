"""Static shapes: all training batches of a run are padded to a few shapes (rows, lengths).

The shapes depend on the lengths of the corpus and the settings. The batches also depend on (seed, epoch).
N examples, U distinct rows of `sizes_ND`, D sides of an example, C shapes, L distinct lengths of a side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from seqtk.data.plan import BatchingConfig

IndexArray: TypeAlias = npt.NDArray[np.int64]
SizeArray: TypeAlias = npt.NDArray[np.integer[Any]]

MAX_BOUNDARIES = 1024
"""Maximum number of lengths to try as bucket boundaries. If there are more, evenly spaced lengths are tried."""


@dataclass(frozen=True)
class Shape:
    """The shape of a batch: the number of rows, and the padded length of each side (a column of `sizes_ND`)."""

    rows: int
    lengths: tuple[int, ...]
    exact: bool = False
    """True if all examples of this shape have exactly these lengths, so that no row has padding."""

    @property
    def positions(self) -> int:
        """The number of positions in a row, summed over its sides."""
        return sum(self.lengths)


def static_shapes(sizes_ND: SizeArray, config: "BatchingConfig", *, joined: bool = False) -> tuple[Shape, ...]:
    """Returns at most `config.shapes` static shapes for examples of these lengths, smallest first.

    Compares several ways to form buckets: by the longer side, and by grids of source × target lengths. For each way,
    the boundaries minimize the padding (see `boundaries`). Returns the shapes with the fewest positions per epoch,
    including padding and filler rows.

    Args:
        sizes_ND: The lengths of the usable examples.
        config: The number of shapes and the maximum size of a batch.
        joined: True if a batch pads all sides to the same length.
    """
    assert config.shapes is not None
    if not len(sizes_ND):
        return ()
    sizes_ND = np.maximum(sizes_ND, 1).astype(np.int64)
    if joined:
        sizes_ND = np.broadcast_to(sizes_ND.max(axis=1, keepdims=True), sizes_ND.shape)
    sizes_UD, count_U = _distinct(sizes_ND)
    found = (_shapes_of(bucket_U, sizes_UD, count_U, config) for bucket_U in _bucketings(sizes_UD, count_U, config))
    return min(found, key=lambda shapes: (_positions(shapes, sizes_UD, count_U), len(shapes)))


def static_batches(
    sizes_ND: SizeArray, kept_N: IndexArray, shapes: Sequence[Shape], random: np.random.RandomState
) -> tuple[list[IndexArray], list[Shape]]:
    """Returns (batches of an epoch in random order, their shapes). Each example in `kept_N` is in one batch.

    The examples are permuted. All batches of a shape except the last are full. The examples of the last batch are moved
    to the next larger shape if this adds fewer positions than filler rows would.
    """
    order_N, sizes_ND = random.permutation(len(kept_N)), sizes_ND[kept_N]
    shapes = _covering(shapes, sizes_ND)
    shape_N = _assigned(sizes_ND, shapes)[order_N]
    order_N = kept_N[order_N][np.argsort(shape_N, kind="stable")]
    count_C = np.bincount(shape_N, minlength=len(shapes))
    examples_C = np.split(order_N, np.cumsum(count_C)[:-1])
    batches: list[IndexArray] = []
    its_shapes: list[Shape] = []
    for number, (shape, (parent, moved)) in enumerate(zip(shapes, _moves(shapes, count_C), strict=True)):
        if moved:
            kept = len(examples_C[number]) - moved
            examples_C[parent] = np.concatenate([examples_C[number][kept:], examples_C[parent]])
            examples_C[number] = examples_C[number][:kept]
        starts = range(0, len(examples_C[number]), shape.rows)
        batches += [examples_C[number][start : start + shape.rows] for start in starts]
        its_shapes += [shape] * len(starts)
    places = random.permutation(len(batches)).tolist()
    return [batches[place] for place in places], [its_shapes[place] for place in places]


def boundaries(length_N: SizeArray, count_N: SizeArray, *, buckets: int) -> list[IndexArray]:
    """Returns the maximum lengths of the buckets that minimize the padding, for 1, 2, … `buckets` buckets.

    Dynamic programming over the distinct lengths l_1 < l_2 < …. Let f_k(j) be the smallest number of positions,
    including padding, of all examples of at most l_j tokens in k buckets. Then f_k(j) = min_{i < j} f_{k-1}(i) + l_j ·
    n(i, j), where n(i, j) is the number of examples of more than l_i and at most l_j tokens.
    """
    every_L = np.unique(length_N).astype(np.int64)
    step_L = np.linspace(0, len(every_L) - 1, min(len(every_L), MAX_BOUNDARIES)).round().astype(np.int64)
    every_L = every_L[step_L]
    size = len(every_L)
    count_L = np.bincount(np.searchsorted(every_L, length_N), weights=count_N, minlength=size)
    up_to_L = np.cumsum(count_L)
    # cost_LL[j, i]: positions of a bucket of all lengths after the i-th up to the j-th; infinite unless i < j.
    cost_LL = every_L[:, None] * (up_to_L[:, None] - up_to_L[None, :])
    cost_LL[np.triu_indices(size)] = np.inf
    least_L, before_LK = every_L * up_to_L, []
    found = [every_L[-1:]]
    for bucket in range(1, min(buckets, size)):
        total_LL = least_L[None, :] + cost_LL
        before_LK.append(total_LL.argmin(axis=1))
        least_L = total_LL.min(axis=1)
        chosen = [size - 1]
        for before_L in reversed(before_LK[:bucket]):
            chosen.append(int(before_L[chosen[-1]]))
        found.append(every_L[chosen[::-1]])
    return found


def _bucketings(sizes_UD: IndexArray, count_U: IndexArray, config: "BatchingConfig") -> Iterator[IndexArray]:
    """Yields bucket_U, the bucket of each row of `sizes_UD`, for each way to form buckets (see `static_shapes`).

    To find the longer side, the length of the target is scaled by about the ratio of the mean lengths, because one
    language may have more tokens per sentence than the other.
    """
    assert config.shapes is not None
    if sizes_UD.shape[1] != 2:
        length_U = sizes_UD.max(axis=1)
        yield np.searchsorted(boundaries(length_U, count_U, buckets=config.shapes)[-1], length_U)
        return
    source_U, target_U = sizes_UD.T
    ratio = float(source_U @ count_U) / float(target_U @ count_U)
    for scale in (1.0, 0.95 * ratio, ratio, 1.05 * ratio):
        scaled_U2 = sizes_UD * ([1, scale] if scale > 1 else [1 / scale, 1])  # factors ≥ 1 lose no precision
        length_U = np.ceil(scaled_U2).max(axis=1).astype(np.int64)
        yield np.searchsorted(boundaries(length_U, count_U, buckets=config.shapes)[-1], length_U)
    of_source, of_target = (boundaries(side_U, count_U, buckets=config.shapes) for side_U in (source_U, target_U))
    for rows, limits in enumerate(of_source, start=1):
        columns = of_target[min(config.shapes // rows, len(of_target)) - 1]
        yield np.searchsorted(limits, source_U) * len(columns) + np.searchsorted(columns, target_U)


def _shapes_of(
    bucket_U: IndexArray, sizes_UD: IndexArray, count_U: IndexArray, config: "BatchingConfig"
) -> tuple[Shape, ...]:
    """Returns the smallest shapes for the buckets. Omits shapes whose examples are all moved to larger shapes."""
    kept = np.unique(bucket_U)
    longest = [tuple(sizes_UD[bucket_U == bucket].max(axis=0).tolist()) for bucket in kept.tolist()]
    shapes = [Shape(_rows(lengths, config), lengths) for lengths in sorted(set(longest), key=lambda x: (sum(x), x))]
    while True:
        shape_U = _assigned(sizes_UD, shapes)
        count_C = _counts(shape_U, count_U, len(shapes))
        moves = _moves(shapes, count_C)
        total_C = _totals(count_C, moves)
        if total_C.all():
            break
        shapes = [shape for shape, total in zip(shapes, total_C.tolist(), strict=True) if total]
    exact_C = [bool((sizes_UD[shape_U == c] == shape.lengths).all()) for c, shape in enumerate(shapes)]
    for parent, moved in moves:
        exact_C[parent] &= not moved
    multiple = config.size_multiple
    return tuple(
        replace(shape, rows=min(shape.rows, -(-total // multiple) * multiple), exact=exact)
        for shape, total, exact in zip(shapes, total_C.tolist(), exact_C, strict=True)
    )


def _rows(lengths: Sequence[int], config: "BatchingConfig") -> int:
    """Returns the maximum number of rows of a batch with these lengths, a multiple of `size_multiple` if possible."""
    limits = [config.max_tokens and config.max_tokens // max(lengths), config.max_sentences]
    rows = max(1, min(limit for limit in limits if limit is not None))
    return rows - rows % config.size_multiple if rows >= config.size_multiple else rows


def _covering(shapes: Sequence[Shape], sizes_ND: SizeArray) -> list[Shape]:
    """Returns `shapes`. Enlarges the largest shape if an example of this epoch does not fit (see `Source.split`)."""
    largest = shapes[-1]
    fits_N = np.zeros(len(sizes_ND), dtype=bool)
    for shape in reversed(shapes):
        fits_N |= _fits(sizes_ND, shape)
        if fits_N.all():
            return list(shapes)
    lengths = np.maximum(largest.lengths, sizes_ND[~fits_N].max(axis=0))
    rows = largest.rows * max(largest.lengths) // int(lengths.max())
    return [*shapes[:-1], Shape(max(1, rows), tuple(lengths.tolist()))]


def _fits(sizes_ND: SizeArray, shape: Shape) -> npt.NDArray[np.bool_]:
    fits_N = np.ones(len(sizes_ND), dtype=bool)
    for side_N, length in zip(sizes_ND.T, shape.lengths, strict=True):
        fits_N &= side_N <= length
    return fits_N


def _assigned(sizes_ND: SizeArray, shapes: Sequence[Shape]) -> npt.NDArray[np.int16]:
    """Returns shape_N: for each example, the index of the first (smallest) shape into which it fits."""
    shape_N = np.zeros(len(sizes_ND), dtype=np.int16)
    for number in reversed(range(len(shapes))):
        shape_N[_fits(sizes_ND, shapes[number])] = number
    return shape_N


def _moves(shapes: Sequence[Shape], count_C: IndexArray) -> list[tuple[int, int]]:
    """Returns (index of a larger shape, number of examples to move to the larger shape) for each shape."""
    totals, moves = count_C.tolist(), []
    for number, shape in enumerate(shapes):
        rest, move = totals[number] % shape.rows, (number, 0)
        for parent in range(number + 1, len(shapes)):
            limits, more = shapes[parent].lengths, shapes[parent].positions - shape.positions
            fits = all(length <= limit for length, limit in zip(shape.lengths, limits, strict=True))
            if fits and rest * more < (shape.rows - rest) * shape.positions:
                totals[parent] += rest
                move = (parent, rest)
                break
        moves.append(move)
    return moves


def _positions(shapes: Sequence[Shape], sizes_UD: IndexArray, count_U: IndexArray) -> int:
    """Returns the number of positions in an epoch whose batches have the shapes `shapes`."""
    count_C = _counts(_assigned(sizes_UD, shapes), count_U, len(shapes))
    total_C = _totals(count_C, _moves(shapes, count_C)).tolist()
    return sum(
        -(-total // shape.rows) * shape.rows * shape.positions for shape, total in zip(shapes, total_C, strict=True)
    )


def _counts(shape_U: npt.NDArray[np.int16], count_U: IndexArray, shapes: int) -> IndexArray:
    return np.bincount(shape_U, weights=count_U, minlength=shapes).astype(np.int64)


def _totals(count_C: IndexArray, moves: Sequence[tuple[int, int]]) -> IndexArray:
    """Returns the number of examples of each shape after the moves."""
    total_C = count_C.copy()
    for number, (parent, moved) in enumerate(moves):
        total_C[number] -= moved
        total_C[parent] += moved
    return total_C


def _distinct(sizes_ND: SizeArray) -> tuple[IndexArray, IndexArray]:
    """Returns (distinct rows, count of each). Much faster than `np.unique` with `axis=0`."""
    base = (int(sizes_ND.max()) + 1,) * sizes_ND.shape[1]
    key_U, count_U = np.unique(np.ravel_multi_index(tuple(sizes_ND.T), base), return_counts=True)
    return np.stack(np.unravel_index(key_U, base), axis=1), count_U
