"""The examples of docs/extending.md are the code of the plug-in package, which the tests next to this one run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_examples_are_the_files() -> None:
    quoted = re.findall(r"```python\n# (tests/plugin/\S+)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(quoted) >= 8
    for path, code in quoted:
        assert code.strip() in (ROOT / path).read_text(encoding="utf-8"), path


def test_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
