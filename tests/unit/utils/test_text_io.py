"""Reading compressed and plain text from files, pipes and standard input, and errors."""

import bz2
import gzip
import io
import lzma
import os
import sys
import threading
from pathlib import Path

import pytest

from seqtk.utils.errors import UserError
from seqtk.utils.text_io import open_text, read_lines, text_output

TEXT = "one\nzwölf\n".encode()


def read(path: Path) -> list[str]:
    return list(read_lines(str(path)))


class TestLines:
    def test_only_a_line_feed_ends_a_line(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_bytes("one\u2028still\r\n\ntwo\x0cthree".encode())
        assert read(tmp_path / "text") == ["one\u2028still", "", "two\x0cthree"]

    @pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
    def test_compression_is_detected_by_content(self, tmp_path: Path, compress: type[bytes]) -> None:
        (tmp_path / "text").write_bytes(compress(TEXT))
        assert read(tmp_path / "text") == ["one", "zwölf"]
        with open_text(tmp_path / "text") as file:
            assert file.read() == TEXT

    def test_byte_order_mark_is_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + TEXT)
        assert read(tmp_path / "text") == ["one", "zwölf"]
        with open_text(tmp_path / "text") as file:
            assert file.read() == TEXT

    @pytest.mark.parametrize("compress", [bytes, gzip.compress])
    def test_text_is_read_from_a_named_pipe(self, tmp_path: Path, compress: type[bytes]) -> None:
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(compress(TEXT)))
        writer.start()
        assert read(tmp_path / "pipe") == ["one", "zwölf"]
        writer.join()

    def test_standard_input_may_be_compressed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        buffer = io.BufferedReader(io.BytesIO(gzip.compress(TEXT)))  # type: ignore[arg-type]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(buffer))
        assert list(read_lines("-")) == ["one", "zwölf"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"one\ntwo\ncaf\xe9\n", "Line 3 of .*text is not UTF-8(.|\\n)*iconv"),
            ("é\n".encode("utf-16"), "UTF-16(.|\\n)*iconv"),
            ("é\n".encode("utf-32"), "UTF-16 or UTF-32"),
            (b"one\na\0b\n", "Line 2 of .*text contains a NUL byte"),
            (gzip.compress(b"hello\n" * 1000, mtime=0)[:-10], "damaged or incomplete"),
            (bz2.compress(b"hello\n" * 1000)[:-10], "damaged or incomplete"),
            (lzma.compress(b"hello\n" * 1000)[:-10], "damaged or incomplete"),
            (b"\x28\xb5\x2f\xfdabc", "zstd"),
            (b"PK\x03\x04abc", "zip"),
        ],
    )
    def test_files_that_are_not_text_are_refused(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(UserError, match=words):
            read(tmp_path / "text")

    def test_missing_file_suggests_a_similar_name(self, tmp_path: Path) -> None:
        (tmp_path / "text.en").touch()
        with pytest.raises(UserError, match=r"text\.n(.|\n)*Did you mean 'text\.en'"):
            read(tmp_path / "text.n")

    def test_reading_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is a folder"):
            read(tmp_path)


def test_output_is_utf8_with_line_feeds(tmp_path: Path) -> None:
    with text_output(str(tmp_path / "out")) as output:
        output.write("zwölf\n")
    assert (tmp_path / "out").read_bytes() == "zwölf\n".encode()
