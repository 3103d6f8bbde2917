"""Writing the text of a split: byte ranges, lines, SGML segments, and cleaned training pairs."""

import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtk.corpora.texts import Lines, Pairs, Part, clean
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter

QUIET = Reporter()


def test_text_is_split_at_byte_offsets(tmp_path: Path) -> None:
    whole = "é".encode() * 50
    (tmp_path / "a").write_bytes(whole)
    (tmp_path / "b.gz").write_bytes(gzip.compress(whole))
    for source in ("a", "b.gz"):
        parts = [Part("train", source, 0, 91), Part("valid", source, 91, 4), Part("test", source, 95, 5)]
        for part in parts:
            assert part.write({source: tmp_path / source}, [tmp_path / part.name], reporter=QUIET) == {
                "bytes": part.length
            }
        assert b"".join((tmp_path / part.name).read_bytes() for part in parts) == whole


def test_source_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"short")
    with pytest.raises(UserError, match="too short: train requires 5 more bytes"):
        Part("train", "a", 0, 10).write({"a": tmp_path / "a"}, [tmp_path / "train"], reporter=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("text", [b"", b"a\n", b" a \r\n\n\xe2\x80\xa8b", b"a\nb"])
def test_held_out_lines_are_not_changed(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(text))
    lines = len(text.split(b"\n")) - (text[-1:] in (b"", b"\n"))
    counts = Lines("valid", "a.gz", lines).write({"a.gz": tmp_path / "a.gz"}, [tmp_path / "valid"], reporter=QUIET)
    assert (tmp_path / "valid").read_bytes() == text
    assert counts == {"lines": lines, "bytes": len(text)}


def test_unexpected_number_of_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n2\n")
    with pytest.raises(UserError, match="It has 2 lines, not 3"):
        Lines("valid", "a", 3).write({"a": tmp_path / "a"}, [tmp_path / "valid"], reporter=QUIET)
    assert not (tmp_path / "valid").exists()


def test_each_sgml_segment_becomes_a_line(tmp_path: Path) -> None:
    text = (
        '<srcset setid="newstest2014" srclang="any">\n<doc docid="1" genre="news">\n<hl>\n'
        '<seg id="1"> Eins &amp; zwei </seg>\n</hl>\n<p>\n<seg id="2">R&D,\n  &quot;so&quot; &amp;lt;</seg>\n'
        '<SEG id="3"></SEG>\n</p>\n</doc>\n</srcset>\n'
    )
    (tmp_path / "a.sgm").write_text(text)
    counts = Lines("test", "a.sgm", 3).write({"a.sgm": tmp_path / "a.sgm"}, [tmp_path / "test"], reporter=QUIET)
    assert (tmp_path / "test").read_text().split("\n") == ["Eins & zwei", 'R&D, "so" &lt;', "", ""]
    assert counts["lines"] == 3


@pytest.mark.parametrize("broken", [0.3, 0.8])
def test_damaged_gzip_file_is_refused(tmp_path: Path, broken: float) -> None:
    whole = gzip.compress(bytes(range(256)) * 100)
    (tmp_path / "a.gz").write_bytes(whole[: int(len(whole) * broken)])
    with pytest.raises(UserError, match="damaged or incomplete"):
        Lines("valid", "a.gz").write({"a.gz": tmp_path / "a.gz"}, [tmp_path / "valid"], reporter=QUIET)
    assert not (tmp_path / "valid").exists()


def pairs(tmp_path: Path, *sides: bytes) -> tuple[dict[str, int], list[list[bytes]]]:
    paths = {}
    for name, text in zip(("a.en", "a.de"), sides, strict=True):
        paths[name] = tmp_path / name
        paths[name].write_bytes(text)
    outputs = [tmp_path / "train.en", tmp_path / "train.de"]
    counts = Pairs(("train.en", "train.de"), (("a.en", "a.de"),)).write(paths, outputs, reporter=QUIET)
    return counts, [path.read_bytes().split(b"\n")[:-1] for path in outputs]


def test_pairs_are_cleaned_and_counted(tmp_path: Path) -> None:
    counts, (english, german) = pairs(
        tmp_path, b"one\n\n three\t \xc2\x85 x\r\nfour\n\xff\nsix", b"eins\nzwei\ndrei\n \x00\nf\xc3\xbcnf\nsechs\n"
    )
    assert english == [b"one", b"three x", b"six"]
    assert german == [b"eins", b"drei", b"sechs"]
    assert counts == {"pairs": 6, "not_utf8": 1, "empty": 2, "kept": 3}


def test_sides_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same number of lines"):
        pairs(tmp_path, b"1\n2\n", b"1\n")
    assert not list(tmp_path.glob("train*"))


@given(
    st.lists(st.text(alphabet="ab é\t\r\u2028\u0085\ufeff\x00", max_size=8), min_size=1, max_size=8),
    st.text(alphabet="a \u2028", min_size=1, max_size=3),
)
def test_cleaning_a_block_equals_cleaning_each_line(lines: list[str], last: str) -> None:
    """The last line may have no line feed."""
    cleaned = clean([*(f"{line}\n".encode() for line in lines), last.encode()])
    blanks = re.compile("[\x00-\x09\x0b-\x20\x7f-\x9f\u2028\u2029\ufeff]+")
    assert [line.decode() for line in cleaned] == [blanks.sub(" ", line).strip(" ") for line in [*lines, last]]
