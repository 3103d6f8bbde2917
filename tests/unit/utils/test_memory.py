"""Memory that loops over batches return to the system."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from seqtk.utils.memory import keep_freed_memory, trimming

BATCHES, BUFFER = 60, 2 * 2**20


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Only glibc returns memory on request.")
def test_freed_buffers_between_results_are_returned() -> None:
    keep_freed_memory()
    before = resident()
    pairs = [(torch.ones(BUFFER // 4), bytes(3000)) for _ in range(BATCHES)]
    results = [result for _, result in pairs]
    pairs.clear()
    assert resident() - before > BATCHES * BUFFER // 2
    list(trimming(range(1), every=1))
    assert resident() - before < BATCHES * BUFFER // 4
    assert len(results) == BATCHES


def test_trimming_yields_the_batches_in_order() -> None:
    assert list(trimming(range(250))) == list(range(250))
