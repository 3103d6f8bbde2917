"""The generated tables in README.md and docs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_generated_tables_in_readme_and_docs_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run tools/tables.py\n{done.stdout}{done.stderr}"
    assert "<!-- members -->" in (ROOT / "README.md").read_text(encoding="utf-8")
