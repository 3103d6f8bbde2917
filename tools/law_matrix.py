"""Runs the laws of attention and prints which kind passed which, and how often: kinds down, laws across.

python tools/law_matrix.py [pytest options, e.g. -n 2 or --device cuda]
"""

import collections
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from seqtk.attention import attentions

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "laws.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/laws/test_attention_laws.py", "-k", "test_law"]
        status = subprocess.run(
            [*command, f"--junitxml={report}", *sys.argv[1:]], cwd=ROOT, stdout=sys.stderr
        ).returncode
        passed: dict[tuple[str, str], int] = collections.Counter()
        all_: dict[tuple[str, str], int] = collections.Counter()
        for case in ElementTree.parse(report).iter("testcase"):
            place = _place(case.attrib["name"])
            all_[place] += 1
            passed[place] += not any(child.tag in ("failure", "error", "skipped") for child in case)
    laws = list(dict.fromkeys(law for _, law in all_))
    for number, law in enumerate(laws, start=1):
        print(f"{number:2} {law.replace('_', ' ')}")
    print("\n| kind | " + " | ".join(map(str, range(1, len(laws) + 1))) + " | all |\n" + "|---" * (len(laws) + 2) + "|")
    for kind in attentions:
        cells = [_cell(passed[kind, law], all_[kind, law]) for law in laws]
        total = _cell(sum(passed[kind, law] for law in laws), sum(all_[kind, law] for law in laws))
        print(f"| `{kind}` | {' | '.join(cells)} | {total} |")
    print(f"\n{sum(passed.values()):,} of {sum(all_.values()):,} passed.")
    sys.exit(status)


def _place(test: str) -> tuple[str, str]:
    """The kind and the law of `test_law[kind-variant-role-law]`."""
    case, _, law = test.partition("[")[2].rstrip("]").rpartition("-")
    return case.partition("-")[0], law


def _cell(passed: int, count: int) -> str:
    return "" if not count else str(passed) if passed == count else f"**{passed}/{count}**"


if __name__ == "__main__":
    main()
