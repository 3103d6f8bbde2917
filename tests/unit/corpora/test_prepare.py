"""Preparing data-bins from published files: small copies of every corpus, interruptions, and real corpora."""

import contextlib
import gzip
import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from seqtk.corpora import CORPORA
from seqtk.corpora.download import RetryPolicy
from seqtk.corpora.prepare import PrepareConfig, prepare
from seqtk.corpora.spec import Corpus
from seqtk.corpora.texts import Pairs
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.report import PreprocessReport
from seqtk.data.sources.databin import DataBin
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from tests.unit.corpora.fake_server import Served, Shelf, files_of_at_most
from tests.unit.corpora.tiny_corpora import HELD_OUT, TRAIN, content_of, lay_out, miniature, sentences
from tests.waiting import wait_until

HURRY = RetryPolicy(attempts=2, pause=0.0, timeout=5.0)


def make(corpus: Corpus, folder: Path, reporter: Reporter | None = None, **settings: object) -> PreprocessReport:
    config = PrepareConfig(
        **{"downloads": str(folder / "downloads"), "destdir": str(folder / "bin"), "workers": 1, **settings}  # type: ignore[arg-type]
    )
    return prepare(corpus, config, reporter=reporter or Reporter(), retry=HURRY)


def databin(folder: Path) -> dict[str, bytes]:
    """Returns the files of a data-bin, except preprocess.json, which has absolute paths."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".json"}


def stocked(shelf: Shelf, contents: dict[str, bytes]) -> None:
    shelf.files = {name: Served(content) for name, content in contents.items()}


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_downloaded_and_prepared(name: str, shelf: Shelf, tmp_path: Path) -> None:
    corpus, contents = miniature(CORPORA[name])
    stocked(shelf, contents)
    messages: list[str] = []
    report = make(corpus, tmp_path, Reporter(messages.append), mirror=shelf.url)
    data = DataBin(tmp_path / "bin")
    assert data.splits() == ["test", "train", "valid"]
    text = tmp_path / "bin" / "text"
    assert not (text / ".unpacked").exists()
    assert sorted(asked for asked, _ in shelf.requests) == sorted(contents)
    kept = json.loads((text / "prepare.json").read_text())["made"]
    for made in corpus.texts:
        counts = kept[" ".join(made.outputs)]["counts"]
        assert any(message.startswith(f"{' and '.join(made.outputs)}: ") for message in messages)
        lines = [(text / output).read_bytes().count(b"\n") for output in made.outputs]
        if isinstance(made, Pairs):
            archives = len(made.sources)
            assert counts == {"pairs": TRAIN * archives, "not_utf8": archives, "empty": archives, "kept": lines[0]}
            assert lines == [(TRAIN - 2) * archives] * 2
    expected = {"train": TRAIN, "valid": HELD_OUT, "test": HELD_OUT}
    if name.startswith("wmt14"):
        expected["train"] = (TRAIN - 2) * len(corpus.texts[0].inputs) // 2
        lang = name[-2:]
        lines = [line.decode() for line in sentences(HELD_OUT, side=lang)]
        lines[0] = lines[0].replace(" of ", " & ")
        assert (text / f"test.{lang}").read_text().splitlines() == lines
    if name == "enwik8":
        sizes = {split: (text / split).stat().st_size for split in data.splits()}
        assert sizes == {"train": 900, "valid": 50, "test": 50}
        assert b"".join((text / split).read_bytes() for split in expected) == content_of(
            CORPORA[name].files[0].members[0]
        )
    else:
        assert {split: count.lines for split, count in report.splits.items()} == expected


@pytest.mark.parametrize("name", CORPORA)
def test_local_files_and_downloads_give_equal_data_bins(name: str, shelf: Shelf, tmp_path: Path) -> None:
    """Local files may be archives or unpacked, with or without folders, compressed or not, and in several folders."""
    corpus, contents = miniature(CORPORA[name])
    stocked(shelf, contents)
    make(corpus, tmp_path / "fetched", mirror=shelf.url)
    items = [item for published in CORPORA[name].files for item in published.members or [published]]
    paths = {item.name.partition("://")[2] or item.name: content_of(item) for item in items}
    flat = {item.file_name: content_of(item) for item in items}
    packed = {path if path.endswith(".gz") else f"{path}.gz": gzip.compress(text) for path, text in flat.items()}
    packed |= {path: text for path, text in flat.items() if path.endswith(".gz")}
    plain = {path.removesuffix(".gz"): gzip.decompress(text) for path, text in flat.items() if path.endswith(".gz")}
    layouts = {"archives": contents, "paths": paths, "flat": flat, "packed": packed, "plain": flat | plain}
    for layout, files in layouts.items():
        unwanted = {f"{path}.gz" for path in plain} if layout == "plain" else set()
        lay_out(tmp_path / layout / "in", {path: text for path, text in files.items() if path not in unwanted})
    lay_out(tmp_path / "two" / "first", dict(list(flat.items())[::2]))
    lay_out(tmp_path / "two" / "second", dict(list(flat.items())[1::2]))
    sources = {layout: f"{tmp_path / layout / 'in'}" for layout in layouts}
    sources["two"] = f"{tmp_path / 'two' / 'first'},{tmp_path / 'two' / 'second'}"
    for layout, source in sources.items():
        make(corpus, tmp_path / layout, source=source)
        assert databin(tmp_path / layout / "bin") == databin(tmp_path / "fetched" / "bin"), layout
        assert not (tmp_path / layout / "downloads").exists()


def test_source_may_be_a_single_file(tmp_path: Path) -> None:
    corpus, contents = miniature(CORPORA["enwik8"])
    lay_out(tmp_path, contents)
    report = make(corpus, tmp_path, source=str(tmp_path / "enwik8.zip"))
    assert report.splits["train"].sides["text"].tokens == 900


@pytest.mark.parametrize("name", CORPORA)
def test_files_that_differ_from_published_are_refused(name: str, shelf: Shelf, tmp_path: Path) -> None:
    corpus, contents = CORPORA[name], miniature(CORPORA[name])[1]
    stocked(shelf, contents)
    with pytest.raises(UserError) as caught:
        make(corpus, tmp_path, mirror=shelf.url)
    assert "differs from the published" in str(caught.value)
    lay_out(
        tmp_path / "in", {item.file_name: content_of(item) for file in corpus.files for item in file.members or [file]}
    )
    with pytest.raises(UserError) as caught:
        make(corpus, tmp_path, source=str(tmp_path / "in"))
    if not name.startswith("wmt14"):  # WMT publishes no checksums of archive members
        assert "differs from the published" in str(caught.value)
    assert not list((tmp_path / "bin").glob("*.idx"))


@pytest.mark.parametrize("name", ["enwik8", "wmt14_en_de", "multi30k"])
def test_prepare_resumes_after_an_interruption(name: str, shelf: Shelf, tmp_path: Path) -> None:
    corpus, contents = miniature(CORPORA[name])
    stocked(shelf, contents)
    messages: list[str] = []
    make(corpus, tmp_path / "whole", Reporter(messages.append), mirror=shelf.url)
    shelf.requests.clear()

    def after(count: int) -> Reporter:
        left = iter(range(count))

        def interrupt(message: str) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        return Reporter(interrupt)

    interrupted = 0
    for count in range(len(messages) + 1):
        try:
            make(corpus, tmp_path, after(count), mirror=shelf.url)
            break  # a resumed run prints fewer messages
        except KeyboardInterrupt:
            assert not list((tmp_path / "bin").glob("dict*"))
            interrupted += 1
    assert interrupted > len(contents) + 2
    assert databin(tmp_path / "bin") == databin(tmp_path / "whole" / "bin")
    assert Counter(name for name, _ in shelf.requests) == dict.fromkeys(contents, 1)


def test_only_changed_sources_are_prepared_again(tmp_path: Path) -> None:
    corpus, contents = miniature(CORPORA["ptb"])
    free = replace(corpus, files=tuple(replace(file, length=None, digest=None) for file in corpus.files))
    source = lay_out(tmp_path / "in", contents)
    make(free, tmp_path, source=str(source))
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bin" / "text").glob("[tv]*")}
    (source / "ptb.valid.txt").write_bytes(contents["ptb.valid.txt"].replace(b"dog", b"cow"))
    with pytest.raises(UserError, match="already contains a data-bin"):
        make(free, tmp_path, source=str(source))
    make(free, tmp_path, source=str(source), overwrite=True)
    assert b"cow" in (tmp_path / "bin" / "text" / "valid").read_bytes()
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bin" / "text").glob("[tv]*")}
    assert {name for name in written if written[name] != again[name]} == {"valid"}


def test_prepare_resumes_after_a_full_disk(shelf: Shelf, tmp_path: Path) -> None:
    corpus, contents = miniature(CORPORA["wmt14_en_de"])
    stocked(shelf, contents)
    make(corpus, tmp_path / "whole", mirror=shelf.url)
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    stages = set()
    for size in range(0, largest, largest // 60):
        with files_of_at_most(size), contextlib.suppress(UserError):
            make(corpus, tmp_path, mirror=shelf.url)
        stages.add(frozenset(path.suffix for path in (tmp_path / "bin").rglob("*") if path.suffix != ".partial"))
        assert not list((tmp_path / "bin").glob("dict*"))
    assert len(stages) > 1
    make(corpus, tmp_path, mirror=shelf.url)
    assert databin(tmp_path / "bin") == databin(tmp_path / "whole" / "bin")


KILLED = """
import sys
from pathlib import Path
from seqtk.corpora import CORPORA
from tests.unit.corpora.tiny_corpora import miniature
from tests.unit.corpora.test_prepare import make
make(miniature(CORPORA["ptb"])[0], Path(sys.argv[1]), mirror=sys.argv[2])
"""


@pytest.mark.slow
def test_prepare_resumes_after_sigkill(shelf: Shelf, tmp_path: Path) -> None:
    corpus, contents = miniature(CORPORA["ptb"])
    stocked(shelf, contents)
    shelf.files["ptb.valid.txt"].drops = [20] * 10
    shelf.files["ptb.valid.txt"].hangs = True
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), shelf.url], cwd=Path(__file__).parents[3])
    wait_until(
        lambda: any(path.stat().st_size for path in tmp_path.rglob("ptb.valid.txt.partial")),
        running=lambda: process.poll() is None,
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    shelf.files["ptb.valid.txt"].drops = []
    make(corpus, tmp_path, mirror=shelf.url)
    assert shelf.requests.count(("ptb.train.txt", None)) == 1
    assert ("ptb.valid.txt", "bytes=20-") in shelf.requests
    assert DataBin(tmp_path / "bin").splits() == ["test", "train", "valid"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "nowhere"}, "source=nowhere does not exist"),
        ({"source": "{empty}"}, "There is no ptb.train.txt in source="),
        ({"mirror": "ftp://x"}, "must begin with http"),
        ({"mirror": "http://x", "source": "{empty}"}, "are both set"),
        ({"mirror": "http://127.0.0.1:9"}, "cannot be downloaded"),
        ({"destdir": "{file}"}, "is a file"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, str], words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file"}

    with pytest.raises(UserError) as caught:
        make(CORPORA["ptb"], tmp_path, **{key: value.format(**places) for key, value in settings.items()})
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_error_names_missing_files_of_an_archive(tmp_path: Path) -> None:
    lay_out(tmp_path / "in", {"wiki.train.tokens": b"a\n"})
    with pytest.raises(UserError) as caught:
        make(CORPORA["wikitext103"], tmp_path, source=str(tmp_path / "in"))
    first = str(caught.value).splitlines()[0]
    assert "wikitext-103-v1.zip" in first
    assert "wikitext-103/wiki.valid.tokens, wikitext-103/wiki.test.tokens" in first
    assert "wiki.train.tokens" not in first


def test_real_penn_treebank_is_prepared(real_data: Path, tmp_path: Path) -> None:
    report = make(CORPORA["ptb"], tmp_path, source=str(real_data / "ptb"))
    counts = {name: (split.lines, split.sides["text"].tokens) for name, split in report.splits.items()}
    assert counts == {"train": (42_068, 929_589), "valid": (3_370, 73_760), "test": (3_761, 82_430)}


@pytest.mark.slow
def test_real_multi30k_is_prepared(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "multi30k"
    make(CORPORA["multi30k"], tmp_path, source=str(source))
    preprocess(
        PreprocessConfig(
            source_lang="en",
            target_lang="de",
            train=str(source / "train"),
            valid=(str(source / "val"),),
            test=(str(source / "test_2016_flickr"),),
            vocab_size=8000,
            destdir=str(tmp_path / "directly"),
        )
    )
    assert databin(tmp_path / "bin") == databin(tmp_path / "directly")


@pytest.mark.parametrize(
    ("name", "train"), [("wikitext103", "wiki.train.tokens"), ("wikitext103_bpe", "wiki.train.raw")]
)
def test_real_wikitext_held_out_text_is_prepared(name: str, train: str, real_data: Path, tmp_path: Path) -> None:
    """Uses the published validation and test text, with checksums. The training text is generated."""
    real, small = CORPORA[name], miniature(CORPORA[name])[0]
    members = (small.files[0].members[0], *real.files[0].members[1:])
    files = (replace(real.files[0], members=members),)
    corpus = replace(small, files=files, texts=(small.texts[0], *real.texts[1:]))
    lay_out(tmp_path / "in", {train: content_of(members[0])})
    report = make(corpus, tmp_path, source=f"{tmp_path / 'in'},{real_data / 'wikitext'}")
    assert {split: report.splits[split].lines for split in ("valid", "test")} == {"valid": 3_760, "test": 4_358}
    if name == "wikitext103":
        tokens = [report.splits[split].sides["text"].tokens for split in ("valid", "test")]
        assert tokens == [217_646, 245_569]


def test_real_newstest_is_prepared(real_data: Path, tmp_path: Path) -> None:
    real, (small, contents) = CORPORA["wmt14_en_de"], miniature(CORPORA["wmt14_en_de"])
    corpus = replace(small, texts=(small.texts[0], *real.texts[1:]))
    training = {name: content for name, content in contents.items() if "training" in name}
    lay_out(tmp_path / "in", training)
    report = make(corpus, tmp_path, source=f"{tmp_path / 'in'},{real_data / 'newstest'}")
    assert {split: report.splits[split].lines for split in ("valid", "test")} == {"valid": 3_000, "test": 3_003}
