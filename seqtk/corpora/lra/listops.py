"""Generates ListOps: nested operations on digits and their values (Nangia and Bowman 2018).

The settings follow Tay et al. 2020. A tree is drawn from its root: above the deepest level a node is an operation
with probability 1/4, else a digit. An operation has 2 to `max_args` arguments. Trees whose number of tokens is not
between `min_length` and `max_length` (both exclusive) are drawn again, and no tree is kept twice. An operator, `]`, and
a digit are one token each.

`_DRAWS` trees are drawn at a time, level by level, so that NumPy works on all nodes of a level at once.

Shape suffixes: N nodes of a level, R trees drawn, K trees kept, L tokens of all kept trees.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.data.workers import ordered_map
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter

TOKENS = (*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")
"""The symbols, indexed by code."""

MIN, MAX, MED, SM, CLOSE = range(10, 15)
_DRAWS = 4096
_PATIENCE = 64
"""After this number of blocks of draws without a new tree, an error is raised."""

Codes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ListOpsShape:
    """The settings of the trees: their depth, arguments and lengths."""

    max_depth: int = setting(
        10, at_least=2, at_most=100, help="Maximum number of levels of a tree. The deepest level has only digits."
    )
    max_args: int = setting(10, at_least=2, at_most=100, help="Maximum number of arguments of an operation.")
    min_length: int = setting(500, at_least=0, help="Expressions have more tokens than this.")
    max_length: int = setting(2000, at_least=2, help="Expressions have fewer tokens than this.")

    def check(self) -> None:
        """Raises UserError if no tree has a length between `min_length` and `max_length`."""
        if self.min_length + 2 > self.max_length:
            raise UserError(
                f"No length is more than min_length={self.min_length} and less than max_length={self.max_length}.",
                "Set max_length to min_length + 2 or more.",
            )
        longest = 1
        for _ in range(self.max_depth - 1):
            longest = min(2 + self.max_args * longest, 10**9)
        if self.min_length >= longest:
            raise UserError(
                f"min_length={self.min_length} is too large: with max_depth={self.max_depth} and "
                f"max_args={self.max_args}, expressions have at most {longest:,} tokens.",
                "Lower min_length, or raise max_depth or max_args.",
            )


@dataclass(frozen=True, eq=False)
class Expressions:
    """Expressions, each stored as an array of token codes, and their values."""

    codes: list[Codes]
    values_K: Ints

    def take(self, chosen: Sequence[int]) -> "Expressions":
        """Returns the expressions with the indices `chosen`, in the order of `chosen`."""
        return Expressions([self.codes[index] for index in chosen], self.values_K[np.array(chosen, dtype=np.int64)])


def generate(shape: ListOpsShape, total: int, *, seed: int, workers: int = 1, reporter: Reporter) -> Expressions:
    """Returns `total` different expressions in random order. They depend only on `shape`, `total` and `seed`.

    Raises UserError if there are too few different expressions of this shape.
    """
    shape.check()
    found: dict[bytes, int] = {}
    unchanged = 0  # number of blocks since the last new expression
    with (
        closing(ordered_map(draw, ((shape, seed, block) for block in count()), workers=workers)) as blocks,
        reporter.bar(total, "drawing expressions", unit="") as bar,
    ):
        for block in blocks:
            before = len(found)
            for codes, value in zip(block.codes, block.values_K.tolist(), strict=True):
                found.setdefault(codes.tobytes(), value)
            bar.update(len(found) - before)
            unchanged = 0 if len(found) > before else unchanged + 1
            if len(found) >= total:
                break
            if unchanged == _PATIENCE:
                raise UserError(
                    f"Found only {len(found):,} of {total:,} different expressions: "
                    f"the last {_PATIENCE * _DRAWS:,} draws gave no new one.",
                    "Set fewer examples or a wider range of lengths, or raise max_depth or max_args.",
                )
    every = Expressions([np.frombuffer(codes, dtype=np.uint8) for codes in found], np.array([*found.values()]))
    return every.take(np.argsort(_bits(seed, 0, 1).random_raw(total), kind="stable").tolist())


def _bits(seed: int, stream: int, block: int) -> np.random.PCG64:
    """Returns the random number generator of one block. Its bits are the same in all versions of NumPy."""
    return np.random.PCG64(np.random.SeedSequence([seed, stream, block]))


@dataclass
class _Level:
    """The nodes of one level. The arguments of an operation are consecutive nodes of the next level."""

    tree_N: Ints
    code_N: Ints  # digit or operator
    args_N: Ints  # 0: a digit


def draw(shape: ListOpsShape, seed: int, block: int) -> Expressions:
    """Draws `_DRAWS` trees. Returns the expressions that are neither too short nor too long."""
    bits = _bits(seed, 1, block)
    length_R = np.zeros(_DRAWS, dtype=np.int64)
    levels: list[_Level] = []
    tree_N = np.arange(_DRAWS)
    for depth in range(1, shape.max_depth + 1):
        level = _draw_level(bits, tree_N, shape.max_args, leaves_only=depth == shape.max_depth)
        levels.append(level)
        length_R += np.bincount(tree_N, weights=1 + (level.args_N > 0), minlength=_DRAWS).astype(np.int64)
        level.args_N[length_R[tree_N] >= shape.max_length] = 0  # the tree is already too long, so it stays incomplete
        tree_N = np.repeat(tree_N, level.args_N)
    kept_R = (length_R > shape.min_length) & (length_R < shape.max_length)
    number_R = np.cumsum(kept_R) - 1
    for level in levels:
        keep_N = kept_R[level.tree_N]
        level.tree_N = number_R[level.tree_N[keep_N]]
        level.code_N, level.args_N = level.code_N[keep_N], level.args_N[keep_N]
    return _written(levels, length_R[kept_R])


def _draw_level(bits: np.random.PCG64, tree_N: Ints, max_args: int, *, leaves_only: bool) -> _Level:
    """Draws the nodes of a level, each from 64 random bits.

    2 bits choose digit or operation, 2 the operator, 30 the digit, and 30 the number of arguments.
    """
    word_N = bits.random_raw(len(tree_N))
    is_leaf_N = (word_N & 3 != 0) if not leaves_only else np.ones(len(tree_N), dtype=bool)
    pick_N = (word_N >> 4) & (2**30 - 1)
    digit_N = ((pick_N * 10) >> 30).astype(np.int64)
    operator_N = (MIN + ((word_N >> 2) & 3)).astype(np.int64)
    args_N = (2 + (((word_N >> 34) * (max_args - 1)) >> 30)).astype(np.int64)
    return _Level(tree_N, np.where(is_leaf_N, digit_N, operator_N), np.where(is_leaf_N, 0, args_N))


def _written(levels: list[_Level], length_K: Ints) -> Expressions:
    """Converts trees to expressions.

    Sizes and values are computed from the leaves to the roots, and positions from the roots to the leaves.
    """
    sizes: list[Ints] = []
    size_N = value_N = np.zeros(0, dtype=np.int64)
    for level in reversed(levels):
        operation_N = level.args_N > 0
        first = np.cumsum(level.args_N[operation_N]) - level.args_N[operation_N]
        own_size_N, own_value_N = np.ones(len(level.args_N), dtype=np.int64), level.code_N.copy()
        if len(first):
            own_size_N[operation_N] = 2 + np.add.reduceat(size_N, first)
            own_value_N[operation_N] = _values(level.code_N[operation_N], value_N, first)
        size_N, value_N = own_size_N, own_value_N
        sizes.insert(0, size_N)
    codes_L = np.full(int(length_K.sum()), CLOSE, dtype=np.uint8)
    place_N = np.cumsum(length_K) - length_K
    codes_L[place_N] = levels[0].code_N
    for above, level, size_N in zip(levels, levels[1:], sizes[1:], strict=False):
        # An argument follows its operator and the previous arguments.
        args = above.args_N[above.args_N > 0]
        before_N = np.cumsum(size_N) - size_N
        first = np.cumsum(args) - args
        place_N = np.repeat(place_N[above.args_N > 0] + 1 - before_N[first], args) + before_N
        codes_L[place_N] = level.code_N
    return Expressions(np.split(codes_L, np.cumsum(length_K)[:-1]) if len(length_K) else [], value_N)


def _values(operator: Ints, value_N: Ints, first: Ints) -> Ints:
    """Returns the value of each operation.

    `value_N` has the values of the arguments of all operations. The arguments of operation i start at index `first[i]`.
    MED is the median, rounded down. SM is the sum modulo 10.
    """
    end = np.append(first[1:], len(value_N))
    owner = np.repeat(np.arange(len(first)), end - first)
    sorted_N = np.sort(owner * 10 + value_N) % 10
    middle = sorted_N[(first + end - 1) // 2] + sorted_N[(first + end) // 2]
    return np.select(
        [operator == MIN, operator == MAX, operator == MED],
        [sorted_N[first], sorted_N[end - 1], middle // 2],
        np.add.reduceat(value_N, first) % 10,
    )


def root_lookup(train: Expressions, test: Expressions) -> float:
    """Returns the accuracy on `test` of a baseline that sees only the root operator.

    For each root operator, it predicts the value that is most frequent in `train`.
    """
    tables = []
    for part in (train, test):
        roots = np.array([codes[0] for codes in part.codes], dtype=np.int64)
        tables.append(np.bincount(roots * 10 + part.values_K, minlength=len(TOKENS) * 10).reshape(-1, 10))
    return float(tables[1][np.arange(len(TOKENS)), tables[0].argmax(axis=1)].sum() / len(test.codes))


def read_official(lines: Iterable[str], name: str) -> Iterator[tuple[list[str], str]]:
    """Yields the tokens, without parentheses, and the value of each line of an official file (`basic_train.tsv`).

    Line 1 is the header. Raises UserError, with the file and the line number, if another line is invalid.
    """
    for number, line in enumerate(lines, start=1):
        source, _, target = line.partition("\t")
        tokens = source.replace("(", " ").replace(")", " ").split()
        if number == 1 and (source, target) == ("Source", "Target"):
            continue
        if not (tokens and len(target) == 1 and target in "0123456789" and set(tokens) <= set(TOKENS)):
            raise UserError(
                f"Line {number} of {name} must be an expression, a tab and its value, but is:", repr(line[:80])
            )
        yield tokens, target
