"""The one exception for what a user can mend, the search for the name that was meant, and the wording of counts.

Everything else that is raised is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: at most three lines that say what is wrong, where, and what to do."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))


def nearest(name: str, known: Iterable[str]) -> str:
    """The last line of an error about an unknown `name`: the known name closest to it, or all of them."""
    names = sorted(known)
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{by_lower[close[0]]}'?"
    if len(names) > MOST_LISTED:
        return f"Among the known: {', '.join(difflib.get_close_matches(name, names, n=MOST_LISTED, cutoff=0))}."
    return f"Known: {', '.join(names)}." if names else "There is none to choose from."


MOST_LISTED = 20


def how_many(count: int, noun: str) -> str:
    """A count as a sentence has it: 1 line, 2,000 lines."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
