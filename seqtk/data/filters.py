"""Filters training lines or pairs by their number of tokens, without EOS."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RULES = ("empty", "too_short", "too_long", "ratio")


@dataclass(frozen=True)
class LengthFilter:
    """Keeps lines or pairs with `min_length` to `max_length` tokens on each side and a ratio of at most `max_ratio`.

    The ratio is the length of the longer side divided by the length of the shorter side. A limit of None is no limit.
    """

    min_length: int = 1
    max_length: int | None = None
    max_ratio: float | None = None

    def __call__(self, lengths: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
        """Returns (mask of the lines to keep, dict from each rule to the number of lines that it drops).

        A line that several rules drop is counted only for the first of them.
        """
        shortest, longest = np.minimum.reduce(lengths), np.maximum.reduce(lengths)
        drops = (
            (shortest == 0) & (self.min_length > 0),
            shortest < self.min_length,
            longest > (np.inf if self.max_length is None else self.max_length),
            longest > (np.inf if self.max_ratio is None else self.max_ratio * np.maximum(shortest, 1)),
        )
        keep = np.ones(len(shortest), dtype=bool)
        dropped = {}
        for rule, drop in zip(RULES, drops, strict=True):
            dropped[rule] = int((drop & keep).sum())
            keep &= ~drop
        return keep, dropped
