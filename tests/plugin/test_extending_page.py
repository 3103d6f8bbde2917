"""The examples in docs/extending.md equal the code of the plug-in package, which test_plugin.py runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_examples_in_the_docs_equal_the_plugin_files() -> None:
    quoted = re.findall(r"```python\n# (tests/plugin/\S+)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(quoted) >= 8
    for path, code in quoted:
        assert code.strip() in (ROOT / path).read_text(encoding="utf-8"), path


def test_links_in_extending_md_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
