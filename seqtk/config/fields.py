"""Fields of config dataclasses: the default, the help text, and the range of valid values.

Every number must be finite unless its field accepts infinity, and every whole number must fit into 64 bits.
`seqtk.config.schema` checks each value that it sets; `check` checks a config that was built in Python.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seqtk.utils.errors import UserError

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
    """True if inf is accepted. -inf and NaN are never accepted."""

    def accepts(self, value: float) -> bool:
        """Returns True if `value` is in the range."""
        return self._representable(value) and self._in_limits(value)

    def describe(self, value: float) -> str:
        """Describes what `value` must be, for example "a whole number of at least 1"."""
        whole = isinstance(value, int)
        noun = "whole number" if whole else "finite number or inf" if self.infinite else "finite number"
        words = "and ".join(f"{words} {limit:,} " for words, _, limit in self._limits())
        too_large = whole and self._in_limits(value) and not self._representable(value)
        return f"a {noun} {words}{'that fits into 64 bits' if too_large else ''}".rstrip()

    def _representable(self, value: float) -> bool:
        if isinstance(value, int):
            return -(2**63) <= value < 2**63
        return math.isfinite(value) or (self.infinite and value == math.inf)

    def _in_limits(self, value: float) -> bool:
        return all(holds(value, limit) for _, holds, limit in self._limits())

    def _limits(self) -> Iterator[tuple[str, Callable[[float, float], bool], float]]:
        for words, holds, limit in (
            ("of at least", operator.ge, self.at_least),
            ("greater than", operator.gt, self.above),
            ("of at most" if self.at_least is self.above is None else "at most", operator.le, self.at_most),
            ("less than", operator.lt, self.below),
        ):
            if limit is not None:
                yield words, holds, limit


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
    """Returns a dataclass field with its help text and the range of its value.

    Args:
        default: The default value; immutable.
        help: One or two whole sentences, shown by `--help`.
        at_least, above, at_most, below: Bounds of a number, or of each number in a tuple. If the field's type allows
            None, None is accepted too.
        infinite: True if inf is accepted. -inf is not.
    """
    limits = Range(at_least=at_least, above=above, at_most=at_most, below=below, infinite=infinite)
    return dataclasses.field(default=default, metadata={HELP: help, RANGE: limits})


def probability(default: Any, *, help: str = "") -> Any:
    """Returns a field for a probability that is less than 1, such as a dropout rate."""
    return setting(default, help=help, at_least=0, below=1)


def range_of(config_type: type, name: str) -> Range:
    """Returns the range of a numeric field: the one given to `setting`, or every finite number."""
    limits = _metadata(config_type, name).get(RANGE)
    return limits if isinstance(limits, Range) else Range()


def help_of(config_type: type, name: str) -> str:
    """Returns the help text of a field."""
    return str(_metadata(config_type, name).get(HELP, ""))


def _metadata(config_type: type, name: str) -> Mapping[str, Any]:
    """Returns the metadata of a field. A subclass that changes only the default inherits it."""
    for cls in config_type.__mro__:
        field = cls.__dict__.get("__dataclass_fields__", {}).get(name)
        if field is not None and field.metadata:
            metadata: Mapping[str, Any] = field.metadata
            return metadata
    return {}


def check_number(value: float, limits: Range, *, key: str) -> None:
    """Raises UserError if the number is out of range. `key` is the key of the number, for the error."""
    if not limits.accepts(value):
        raise UserError(f"{key}={written(value)}: must be {limits.describe(value)}.")


def check(config: Any, *, key: str = "") -> None:
    """Raises UserError if a number in a config, or in a nested config, is out of its range.

    Args:
        config: A config dataclass.
        key: The key of the config, for the error.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{key}.{field.name}" if key else field.name
        for item in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(item):
                check(item, key=name)
            elif isinstance(item, int | float) and not isinstance(item, bool):
                check_number(item, range_of(type(config), field.name), key=name)


def written(value: Any) -> str:
    """Formats a value for an error message, on one line. A mapping is replaced by its `kind`."""
    if isinstance(value, Mapping):
        return str(value.get("kind", "{...}"))
    if isinstance(value, list | tuple):
        text = f"[{','.join(map(written, value[:MAX_SHOWN]))}]"
    elif isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, int) and value.bit_length() > MAX_SHOWN:  # Python may refuse to print so many digits
        text = f"{'-' if value < 0 else ''}1e{int(value.bit_length() * math.log10(2))}"
    else:
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


MAX_SHOWN = 200
"""Maximum number of characters of a value in an error message."""
