"""Selects whether an operation runs its naive or its fast form.

Every file of `seqtk.ops` has a function `naive` next to the fast form: the formula in a few lines of plain torch, which
autograd differentiates. The public function of the file chooses, in this order:

1. `naive` if the environment variable `SEQTK_NAIVE=1` is set, or inside `with naive_ops():`. Use it to debug a layer,
   to read what it computes, and to test the fast form. It is slow, and its memory grows with the square of the length.
2. The fast form for the device of the tensors.

B batch, T length, and so on: each file states its own letters for the axes of its tensors.
"""

import contextlib
import os
from collections.abc import Iterator

_naive = os.environ.get("SEQTK_NAIVE", "0") not in ("", "0")


def naive_mode() -> bool:
    """Returns True if operations run their naive forms."""
    return _naive


@contextlib.contextmanager
def naive_ops(enabled: bool = True) -> Iterator[None]:
    """Context manager in which operations run their naive forms, or their fast forms with `enabled=False`.

    It overrides `SEQTK_NAIVE`. It applies to the whole process, not to one thread. The backward pass of a fast form
    stays fast.
    """
    global _naive
    before, _naive = _naive, enabled
    try:
        yield
    finally:
        _naive = before
