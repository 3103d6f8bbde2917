"""Reading raw text: lines, blocks, samples of lines, and errors."""

import gzip
from pathlib import Path

import pytest

from seqtk.data import corpus
from seqtk.data.corpus import TextConfig, check_equal, check_text, count_lines, find_text, read_blocks, sample_lines
from seqtk.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", 0), ("a", 1), ("a\n", 1), ("a\nb", 2), ("\n\n", 2), ("a\u2028b\rc\x85d\x0b\n", 1), ("ä" * 50 + "\nö", 2)],
)
def test_a_line_ends_at_newline_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, lines: int) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 3)
    plain, packed = tmp_path / "x", tmp_path / "x.gz"
    plain.write_bytes(text.encode())
    packed.write_bytes(gzip.compress(text.encode()))
    assert check_text(plain) == check_text(packed) == lines


def test_error_names_the_line_with_invalid_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 5)
    (tmp_path / "x").write_bytes(b"good\nfine\nM\xe4rz\nmore\n")
    with pytest.raises(UserError, match=r"Line 3 of .*x is not UTF-8: .*\\xe4"):
        check_text(tmp_path / "x")
    (tmp_path / "x").write_bytes("good\nä".encode()[:-1])
    with pytest.raises(UserError, match="Line 2"):
        check_text(tmp_path / "x")


def test_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"hello\n" * 1000)[:-10])
    with pytest.raises(UserError, match=r"x\.gz is damaged or incomplete"):
        check_text(tmp_path / "x.gz")
    (tmp_path / "x.gz").write_bytes(b"hello\n")
    assert check_text(tmp_path / "x.gz") == 1


def test_blocks_of_all_files_have_the_same_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"".join(b"%d\n" % i for i in range(100)))
    (tmp_path / "b").write_bytes(b"".join(b"long line %d\n" % i for i in range(100)))
    blocks = list(read_blocks([tmp_path / "a", tmp_path / "b"], block_bytes=16))
    assert len(blocks) > 10
    assert all(count_lines(first) == count_lines(second) for first, second in blocks)
    assert b"".join(second for _, second in blocks) == (tmp_path / "b").read_bytes()


def test_sampled_lines_are_evenly_spaced(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"".join(b"%s%d\r\n" % (name.encode(), i) for i in range(10)))
    paths = [tmp_path / "a", tmp_path / "b"]
    assert list(sample_lines(paths, lines=20, max_lines=5)) == [b"a0", b"a4", b"a8", b"b0", b"b4", b"b8"]
    assert len(list(sample_lines(paths, lines=20, max_lines=20))) == 20


def test_missing_file_error_lists_existing_languages(tmp_path: Path) -> None:
    (tmp_path / "train.en").touch()
    (tmp_path / "train.de.gz").touch()
    assert find_text(f"{tmp_path}/train", "de").name == "train.de.gz"
    with pytest.raises(UserError, match=r"train\.dee(.|\n)*exist for these languages: de, en"):
        find_text(f"{tmp_path}/train", "dee")
    with pytest.raises(UserError, match="nowhere"):
        find_text(f"{tmp_path}/nowhere/train", "en")


def test_error_names_both_line_counts() -> None:
    with pytest.raises(UserError, match=r"a has 1,000, b has 999\."):
        check_equal([Path("a"), Path("b")], [1000, 999])


def test_error_suggests_languages_if_two_suffixes_exist(tmp_path: Path) -> None:
    for name in ("train.de", "train.en", "wiki.test.raw"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(UserError, match=r"(?s)there are train\.de and train\.en.*set source_lang="):
        TextConfig(train=f"{tmp_path}/train").files()
    with pytest.raises(UserError) as raised:
        TextConfig(train=f"{tmp_path}/wiki.test").files()
    assert str(raised.value).splitlines()[1:] == ["Did you mean 'wiki.test.raw'?"]
    (tmp_path / "train.gz").write_bytes(gzip.compress(b"a\n"))
    assert TextConfig(train=f"{tmp_path}/train").files() == {"train": (tmp_path / "train.gz",)}


def test_several_files_of_a_split_are_numbered() -> None:
    config = TextConfig(train="t", valid=("v", "w"), test=("x,y",))
    assert config.prefixes() == {"train": "t", "valid": "v", "valid1": "w", "test": "x", "test1": "y"}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"target_lang": "de"}, "requires source_lang"),
        ({"source_lang": "x", "target_lang": "x"}, "both 'x'"),
        ({}, "No text"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        TextConfig(**settings).files()
