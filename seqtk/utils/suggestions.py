"""Suggestions for errors about unknown names, keys and paths: Did you mean …?"""

import difflib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the last line of an error about an unknown `name`: the most similar known name, or all known names."""
    names = sorted(known)
    meant = closest(name, names)
    if meant is not None:
        return f"Did you mean '{meant}'?"
    if len(names) > MOST_LISTED:
        return ""
    return f"Known: {', '.join(names)}." if names else "No names are known."


def nearest_key(name: str, here: Iterable[str], below: Iterable[str], *, prefix: str = "") -> str:
    """Returns the last line of an error about an unknown key: the most similar key, or the known keys if they are few.

    Only the last part of a known dotted key is compared with `name`: `c` of `a.b.c`.

    Args:
        name: The unknown key or its last part, without `prefix`.
        here: The keys of the config that was searched. They are listed if no key is similar.
        below: The dotted keys of the configs nested in that config. They may be suggested too.
        prefix: The key of that config and a dot, such as `model.`. The suggestion begins with it.
    """
    here = list(here)
    meant = closest(name.replace("-", "_"), sorted({*here, *below}, key=lambda key: (key.count("."), key)), dotted=True)
    if meant is not None:
        return f"Did you mean '{prefix}{meant}'?"
    return f"Known: {', '.join(sorted(here))}." if 0 < len(here) <= MOST_KEYS_LISTED else ""


def near_path(path: Path, *, suits: Callable[[Path], bool] = Path.exists) -> tuple[str, ...]:
    """Returns the last line of an error about a missing path: a similar name in the same folder, or no line.

    If the folder does not exist either, the line says so.
    """
    folder = path.absolute().parent
    with suppress(OSError):
        if not folder.is_dir():
            return (f"There is no folder {folder}.",)
        names = {item.name for item in folder.iterdir() if suits(item)}
        meant = closest(path.name, sorted(names - {path.name}))
        return () if meant is None else (f"Did you mean '{meant}'?",)
    return ()


def closest(name: str, known: Iterable[str], *, dotted: bool = False) -> str | None:
    """Returns the known name that is most similar to `name` (the first on ties), or None if none is similar.

    A name is similar if it shares two thirds of its letters in order, or contains all words of `name`
    (`warmup` → `warmup_updates`). With `dotted`, only the last parts of the known names are compared.
    """

    def closeness(other: str) -> float:
        other = (other.rpartition(".")[2] if dotted else other).lower()
        ratio = difflib.SequenceMatcher(None, other, name.lower()).ratio()
        return max(ratio, CLOSE) if set(name.lower().split("_")) <= set(other.split("_")) else ratio

    best = max(known, key=closeness, default=None)
    return best if best is not None and closeness(best) >= CLOSE else None


CLOSE = 0.66
"""Minimum similarity (`difflib.SequenceMatcher.ratio`) of a name that is suggested."""

MOST_LISTED, MOST_KEYS_LISTED = 60, 12
"""Maximum numbers of names, and of keys, in a printed list."""
