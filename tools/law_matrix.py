"""Runs the laws of attention and writes docs/laws.md: which kind passed which, and how often.

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
PAGE = ROOT / "docs" / "laws.md"
HEAD = """# The laws of attention, kind by kind

Written by `python tools/law_matrix.py`, which runs [the laws](adding-an-attention.md#the-laws): how many cases passed,
a case being an option of the kind in a role that it has. Empty: the law is about a role that the kind does not have.
A law about a promise that a kind does not make, such as a longest input, holds idly. The laws, by number:

"""


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
    lines = [f"{number}. {law.replace('_', ' ')}" for number, law in enumerate(laws, start=1)]
    lines += ["", f"| kind | {' | '.join(map(str, range(1, len(laws) + 1)))} | all |", "|---" * (len(laws) + 2) + "|"]
    for kind in attentions:
        cells = [_cell(passed[kind, law], all_[kind, law]) for law in laws]
        total = _cell(sum(passed[kind, law] for law in laws), sum(all_[kind, law] for law in laws))
        lines.append(f"| `{kind}` | {' | '.join(cells)} | {total} |")
    lines += ["", f"{sum(passed.values()):,} of {sum(all_.values()):,} passed."]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(lines[-1])
    sys.exit(status)


def _place(test: str) -> tuple[str, str]:
    """The kind and the law of `test_law[kind-variant-role-law]`."""
    case, _, law = test.partition("[")[2].rstrip("]").rpartition("-")
    return case.partition("-")[0], law


def _cell(passed: int, count: int) -> str:
    return "" if not count else str(passed) if passed == count else f"**{passed}/{count}**"


if __name__ == "__main__":
    main()
