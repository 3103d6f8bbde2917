"""What a user is told: the one exception for what can be mended, the name that was meant, the wording of counts.

Everything else that is raised is a bug of ours and keeps its traceback.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: at most three lines that say what is wrong, where, and what to do."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """A refusal of the system that names no path, as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def nearest(name: str, known: Iterable[str]) -> str:
    """The last line of an error about an unknown `name`: the known name closest to it, or all of them."""
    names = sorted(known)
    meant = _meant(name, names)
    if meant is not None:
        return f"Did you mean '{meant}'?"
    if len(names) > MOST_LISTED:
        return f"Among the known: {', '.join(difflib.get_close_matches(name, names, n=MOST_LISTED, cutoff=0))}."
    return f"Known: {', '.join(names)}." if names else "There is none to choose from."


def near_path(path: Path, *, suits: Callable[[Path], bool] = Path.exists, ending: str = "") -> tuple[str, ...]:
    """The last line of an error about a path that is not there: the one beside it that was meant, if one is like it.

    Else that there is no such folder, or nothing: what a folder happens to hold is no list of what may be meant. Names
    are taken without `ending`.
    """
    folder = path.absolute().parent
    with suppress(OSError):
        if not folder.is_dir():
            return (f"There is no folder {folder}.",)
        meant = _meant(path.name, sorted(item.name.removesuffix(ending) for item in folder.iterdir() if suits(item)))
        return () if meant is None else (f"Did you mean '{meant}'?",)
    return ()


def _meant(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, if it is close."""
    by_lower = {known.lower(): known for known in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


MOST_LISTED = 20


def how_many(count: int, noun: str) -> str:
    """A count as a sentence has it: 1 line, 2,000 lines."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
