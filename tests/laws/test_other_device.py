"""Models on a device that is not the CPU: no operation mixes devices, and training does not wait for the device.

The device is emulated, so that machines without a GPU test the code for GPUs (see `tests.other_device`).
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import other_device
from tests.laws.on_other_device import PARTS


@pytest.mark.slow
@pytest.mark.skipif(not other_device.is_supported(), reason="this torch has no devices that are written in Python")
@pytest.mark.parametrize("part", list(PARTS))
def test_device_gives_the_results_of_the_cpu(part: str) -> None:
    command = [sys.executable, "-m", "tests.laws.on_other_device", part]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
