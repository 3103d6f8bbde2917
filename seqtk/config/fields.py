"""Fields of config dataclasses: a default, the help text, and the range that a value must lie in.

Every number must be finite unless its field says otherwise; `seqtk.config.schema` checks a value when it sets one, and
names the whole key in the error.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

HELP, RANGE = "help", "range"
"""The keys of a field's metadata."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field accepts."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    infinite: bool = False
    """Whether infinity is accepted; NaN never is."""

    def __contains__(self, value: float) -> bool:
        return (
            (math.isfinite(value) or (self.infinite and not math.isnan(value)))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = [
            ("at least", self.at_least),
            ("greater than", self.above),
            ("at most", self.at_most),
            ("less than", self.below),
        ]
        words = " and ".join(f"{words} {limit:,}" for words, limit in limits if limit is not None)
        return f"a {'' if self.infinite else 'finite '}number{f' {words}' if words else ''}"


def setting(
    default: Any,
    *,
    help: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> Any:
    """A dataclass field with its help text and the range of its value.

    Args:
        default: The default value; immutable.
        help: One or two whole sentences, shown by `--help`.
        at_least, above, at_most, below: Bounds of a number, or of each number in a tuple. None is always accepted
            where the field's type allows it.
        infinite: Accept infinity.
    """
    limits = Range(at_least=at_least, above=above, at_most=at_most, below=below, infinite=infinite)
    return dataclasses.field(default=default, metadata={HELP: help, RANGE: limits})


def probability(default: Any, *, help: str = "") -> Any:
    """A field for a probability that is less than 1, such as a dropout rate."""
    return setting(default, help=help, at_least=0, below=1)
