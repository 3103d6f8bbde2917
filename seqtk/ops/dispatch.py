"""Which form of an operation runs.

Every file of `seqtk.ops` has a function `naive` next to the fast form: the formula in a few lines of plain torch, which
autograd differentiates. The public function of the file chooses, in this order:

1. `naive` if the environment says `SEQTK_NAIVE=1`, or inside `with naive_ops():`. It serves to debug a layer, to read
   what it computes, and to test the fast form. It is slow and takes memory that grows with the square of the length.
2. the form for the device of the tensors.

B batch, T length, and so on: each file states its own letters for the axes of its tensors.
"""

import contextlib
import os
from collections.abc import Iterator

_naive = os.environ.get("SEQTK_NAIVE", "0") not in ("", "0")


def naive_mode() -> bool:
    """Whether every operation runs its naive form."""
    return _naive


@contextlib.contextmanager
def naive_ops(enabled: bool = True) -> Iterator[None]:
    """Run the naive forms (or, with `enabled=False`, the fast ones) inside the block, whatever the environment says.

    The setting is that of the process, not of a thread. The backward pass of a fast form runs the fast form.
    """
    global _naive
    before, _naive = _naive, enabled
    try:
        yield
    finally:
        _naive = before
