"""A process of a distributed run ends if another process is lost, and not otherwise."""

import subprocess
import sys

import pytest

from seqtk.training import heartbeat

SCRIPT = """
import os, signal, sys, time
import torch.distributed as dist
from seqtk.training import heartbeat

heartbeat.INTERVAL, heartbeat.LIMIT = 0.2, 3.0
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

def start(rank, size):
    return heartbeat.Heartbeat(rank=rank, size=size, host="127.0.0.1", port=store.port, prefix="run")
"""
SUSPENDED = """
both = [start(rank, 2) for rank in range(2)]
time.sleep(0.5)
if os.fork() == 0:
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(5)
    os.kill(os.getppid(), signal.SIGCONT)
    os._exit(0)
time.sleep(8)
for each in both:
    each.close()  # threads that still use the store would end the interpreter with an error
print("alive")
"""
VANISHED = """
here = [start(rank, 4) for rank in (0, 2)]
time.sleep(250)
"""


def result_of(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT + script], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_suspended_process_is_not_considered_lost() -> None:
    """The clock continues while the process is stopped, as on a suspended virtual machine."""
    ran = result_of(SUSPENDED)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr


@pytest.mark.slow
def test_error_names_the_lost_process() -> None:
    """Processes 1 and 3 never start. Processes 0 and 2 detect this at the same time."""
    ran = result_of(VANISHED)
    assert ran.returncode == 1
    assert "Process 1 is lost" in ran.stderr or "Process 3 is lost" in ran.stderr


def test_lost_host_is_detected_within_30_seconds() -> None:
    """In the worst case, a lost host is detected after the limit and three intervals."""
    assert heartbeat.LIMIT + 3 * heartbeat.INTERVAL < 30
