"""Reference implementations of the strided and fixed patterns of Sparse Transformers, and of BigBird."""

from typing import Any

from seqtk.testing.reference import Array, Problem
from tests.laws.references.windows import patterned


def strided_sparse(problem: Problem) -> Array:
    """Computes attention to near positions in half of the heads (rounded up), and to a column in the others."""
    stride, heads = problem.config.stride, problem.config.heads

    def pattern(row: int, head: int, t: int, s: int) -> bool:
        if head >= heads - heads // 2:
            return (t - s) % stride == 0
        return t - s < stride if problem.role.name == "CAUSAL" else abs(t - s) <= stride // 2

    return patterned(problem, pattern)


def fixed_sparse(problem: Problem) -> Array:
    block, summary = problem.config.block, problem.config.summary
    return patterned(problem, lambda row, head, t, s: t // block == s // block or s % block >= block - summary)


def bits(x: int) -> int:
    """Returns a 32-bit hash of an integer."""
    x &= 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


def bigbird(problem: Problem) -> Array:
    """Computes attention to neighboring blocks, global blocks, and one random block of each of R ranges of blocks."""
    config = problem.config

    def pattern(row: int, head: int, t: int, s: int) -> bool:
        n, other = t // config.block, s // config.block
        if min(n, other) < config.global_blocks or abs(n - other) <= 1:
            return True
        blocks = -(-int((~problem.pad_BS[row]).sum()) // config.block)
        rest = [b for b in range(config.global_blocks, blocks) if abs(b - n) > 1]
        for pick in range(config.random_blocks):
            fraction = bits(bits(bits(bits(config.seed) + head) + n) + pick) / 2**32
            if rest and other == rest[int((pick + fraction) * len(rest) / config.random_blocks)]:
                return True
        return False

    return patterned(problem, pattern)


REFERENCES = {"strided_sparse": strided_sparse, "fixed_sparse": fixed_sparse, "bigbird": bigbird}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "strided_sparse": {"": {"stride": 2}, "three": {"stride": 3, "bias": False}},
    "fixed_sparse": {"": {"block": 2, "summary": 1}, "three": {"block": 3, "summary": 2, "bias": False}},
    "bigbird": {"": {"block": 1, "random_blocks": 1, "seed": 1}, "two": {"block": 2, "random_blocks": 2}},
}
