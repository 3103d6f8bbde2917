"""`trimming` yields batches and returns freed memory to the system."""

import platform
import subprocess
import sys

import pytest

from seqtk.utils.memory import trimming

# Collects small results between large buffers, as evaluation does. Prints the resident MiB before and after trimming.
SCRIPT = """
import resource
from pathlib import Path
import torch
from seqtk.utils.memory import keep_freed_memory, trimming

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

keep_freed_memory()
before = resident()
pairs = [(torch.ones(2**19), bytes(3000)) for _ in range(60)]
results = [result for _, result in pairs]
pairs.clear()
kept = resident() - before
list(trimming(range(1), every=1))
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Only glibc returns memory on request.")
def test_freed_buffers_between_results_are_returned() -> None:
    """Runs in a separate process, because free memory of other tests would be used first."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, after = map(float, ran.stdout.split())
    assert kept > 100  # of 120 MiB
    assert after < 10


def test_trimming_yields_the_batches_in_order() -> None:
    assert list(trimming(range(250))) == list(range(250))
