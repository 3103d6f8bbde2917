"""The benchmark of byte-level classifiers, tools/bench_lra.py, tested with tiny sizes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TINY = (
    *("--threads", "1", "--dim", "16", "--ffn-dim", "16", "--heads", "2", "--blocks", "1", "--positions", "128"),
    *("--lengths", "16", "32", "--long", "32", "64", "--rounds", "1", "--examples", "20"),
    *("--layers", "synthesizer_random", "random+dot"),
)


def printed(part: str) -> str:
    command = [sys.executable, "tools/bench_lra.py", "--only", part, *TINY]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
class TestParts:
    def test_speed_table_has_every_layer(self) -> None:
        rows = re.findall(r"\| `(\S+)` \| (\S+) \((\S+)\) \| \S+ \(\S+\) \|", printed("speed"))
        assert [name for name, *_ in rows] == 2 * ["softmax", "synthesizer_random", "random+dot"]
        assert float(rows[0][2]) == 1
        assert all(float(rate) > 0 for _, rate, _ in rows[:3])

    def test_memory_table_has_every_length(self) -> None:
        assert re.search(r"\| 32 \| 64 \|(.|\n)*`linear` \| \S+ \([\d,]+\) \| \S+ \([\d,]+\) \|", printed("memory"))

    def test_loading_table_compares_two_layers(self) -> None:
        assert len(re.findall(r"trained, `\w+` \| [\d.,]+ \| [\d,]+ \|", printed("loading"))) == 2

    def test_losses_of_plain_torch_equal_losses_of_seqtk(self) -> None:
        text = printed("plain")
        found = re.search(r"relative difference of the losses .* (\S+)\n", text)
        assert found is not None
        assert float(found[1]) < 1e-5
        assert re.search(r"\| ours fp32 \| [\d.,]+ \|", text)
