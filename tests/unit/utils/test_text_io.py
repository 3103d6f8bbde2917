"""Lines of text that are read: as many as `wc -l` counts, and UTF-8."""

from pathlib import Path

import pytest

from seqtk.utils.errors import UserError
from seqtk.utils.text_io import read_lines


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("one\u2028still\r\n\ntwo\x0cthree".encode())
    assert list(read_lines(str(tmp_path / "text"))) == ["one\u2028still", "", "two\x0cthree"]


def test_what_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\ntwo\ncaf\xe9\n")
    lines = read_lines(str(tmp_path / "text"))
    assert [next(lines), next(lines)] == ["one", "two"]
    with pytest.raises(UserError) as caught:
        next(lines)
    assert str(caught.value).startswith(f"Line 3 of {tmp_path}/text is not UTF-8: ")
    assert "iconv" in str(caught.value)
