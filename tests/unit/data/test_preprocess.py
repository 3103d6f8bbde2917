"""Preprocessing of text to a self-contained data-bin, and its errors."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtk.cli.preprocess import main
from seqtk.data.corpus import TextConfig
from seqtk.data.filters import LengthFilter
from seqtk.data.labelled import preprocess_labelled
from seqtk.data.labelled_text import Columns
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.sources.databin import RECORD, DataBin
from seqtk.data.vocabulary import EOS, UNK
from seqtk.data.workers import ordered_map
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter

NOUNS = ("dog", "cat", "bird", "house", "tree", "river")
EN = [f"the {a} sees the {b} {i}" for i, a in enumerate(NOUNS) for b in NOUNS]
DE = [line.replace("the", "das").replace("sees", "sieht") for line in EN]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for name, lang, lines in [
        ("train", "en", [*EN, "", "x " * 30, "short"]),
        ("train", "de", [*DE, "leer", "y " * 30, "kurz " * 9]),
        ("valid", "en", ["the dog ☃", "", "a very long line " * 9]),
        ("valid", "de", ["das dog", "nichts", "kurz"]),
    ]:
        (tmp_path / f"{name}.{lang}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tmp_path


def _config(text: Path, **changes: Any) -> PreprocessConfig:
    start = PreprocessConfig(
        source_lang="en",
        target_lang="de",
        train=f"{text}/train",
        valid=(f"{text}/valid",),
        destdir=f"{text}/bin",
        workers=1,
    )
    trains = not {"tokens", "sentencepiece"} & changes.keys()
    return replace(start, **({"vocab_size": 64} if trains else {}) | changes)


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_raw_text_gives_a_complete_data_bin(text: Path, joint: bool, model_type: str) -> None:
    preprocess(_config(text, joint=joint, model_type=model_type, min_length=0))
    data = DataBin(text / "bin")
    assert (data.source_lang, data.target_lang, data.splits()) == ("en", "de", ["train", "valid"])
    for lang, lines in (("en", EN), ("de", DE)):
        vocabulary, tokenizer, items = data.vocabulary(lang), data.tokenizer(lang), data.split("train", lang)
        assert items[7].tolist() == vocabulary.encode(tokenizer.encode(lines[7])).tolist()
        assert tokenizer.decode(vocabulary.decode(items[7])) == lines[7]
    assert (data.vocabulary("en") == data.vocabulary("de")) is joint
    assert len(list((text / "bin").glob("sentencepiece*.model"))) == (1 if joint else 2)


def test_dictionary_has_token_counts_of_train_split(text: Path) -> None:
    preprocess(_config(text))
    data = DataBin(text / "bin")
    items = [data.split("train", lang)[i] for lang in ("en", "de") for i in range(len(data.split("train", lang)))]
    counted = np.bincount(np.concatenate(items), minlength=64)
    assert data.vocabulary("en").counts[4:] == counted[4:].tolist()


def test_report_counts_kept_and_dropped_lines(text: Path) -> None:
    report = preprocess(_config(text, tokens="words", max_length=20, max_ratio=8.0))
    train, valid = report.splits["train"], report.splits["valid"]
    assert (train.lines, train.items) == (39, 36)
    assert train.dropped == {"empty": 1, "too_short": 0, "too_long": 1, "ratio": 1}
    assert (valid.lines, valid.items, sum(valid.dropped.values())) == (3, 3, 0)
    assert (valid.sides["en"].tokens, valid.sides["en"].unknown) == (3 + 36 + 3, 37)
    record = json.loads((text / "bin" / "preprocess.json").read_text())
    assert record["splits"]["train"]["dropped"] == train.dropped
    assert record["settings"]["max_length"] == 20
    assert "workers" not in record["settings"]


def test_no_line_of_held_out_text_is_dropped(text: Path) -> None:
    preprocess(_config(text))
    data = DataBin(text / "bin")
    assert len(data.split("valid", "en")) == len(data.split("valid", "de")) == 3
    assert data.split("valid", "en")[1].tolist() == [EOS]
    assert UNK in data.split("valid", "en")[0]


def test_dropped_pair_is_counted_for_only_one_rule() -> None:
    keep, dropped = LengthFilter(min_length=2, max_length=10, max_ratio=3.0)(
        [np.array([0, 1, 2, 11, 3, 4]), np.array([99, 5, 2, 2, 10, 8])]
    )
    assert keep.tolist() == [False, False, True, False, False, True]
    assert dropped == {"empty": 1, "too_short": 1, "too_long": 1, "ratio": 1}
    assert LengthFilter(min_length=0, max_ratio=2.0)([np.array([0, 0]), np.array([2, 3])])[0].tolist() == [True, False]


@pytest.mark.parametrize("settings", [{}, {"tokens": "words"}])
def test_output_does_not_depend_on_block_size(text: Path, settings: dict[str, Any]) -> None:
    preprocess(_config(text, **settings))
    blocks = preprocess(_config(text, destdir=f"{text}/blocks", **settings), block_bytes=100)
    assert blocks.splits["train"].lines == 39
    assert _files(text / "bin") == _files(text / "blocks")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"tokens": "words"}, {"model_type": "unigram", "joint": False}])
def test_number_of_workers_does_not_change_the_files(text: Path, settings: dict[str, Any]) -> None:
    made = []
    for workers in (1, 2, 8):
        config = _config(text, destdir=f"{text}/bin{workers}", workers=workers, **settings)
        preprocess(config, block_bytes=10)
        made.append(_files(text / f"bin{workers}"))
    assert made[0] == made[1] == made[2]


def test_workers_keep_the_order_and_limit_prefetching() -> None:
    read: list[int] = []
    children = set(multiprocessing.active_children())

    def items() -> Any:
        for number in range(50):
            read.append(number)
            yield (number,)

    results = ordered_map(abs, items(), workers=2)
    assert next(results) == 0
    assert len(read) <= 6
    assert list(results) == list(range(1, 50))
    with pytest.raises(TypeError):
        list(ordered_map(abs, [("x",)], workers=2))
    assert set(multiprocessing.active_children()) <= children


def test_raw_and_tokenized_text_give_equal_data_bins(text: Path) -> None:
    preprocess(_config(text, vocab_size=48))
    model = text / "bin" / "sentencepiece.model"
    tokenizer = DataBin(text / "bin").tokenizer("en")
    for name in ("train.en", "train.de", "valid.en", "valid.de"):
        lines = (text / name).read_text(encoding="utf-8").split("\n")[:-1]
        pieces = "".join(" ".join(tokenizer.encode(line)) + "\n" for line in lines)
        (text / f"pieces.{name}").write_text(pieces, encoding="utf-8")
    pieces_config = replace(
        _config(text, tokens="words"), train=f"{text}/pieces.train", valid=(f"{text}/pieces.valid",)
    )
    preprocess(replace(pieces_config, destdir=f"{text}/tokenized", sentencepiece=str(model)))
    dictionary = str(text / "tokenized" / "dict.en.txt")
    with (text / "tokenized" / "dict.en.txt").open("a", encoding="utf-8") as file:
        file.write("☃ 1\n")  # a word that the model does not know
    raw = _config(text, destdir=f"{text}/raw", sentencepiece=str(model), source_dict=dictionary)
    tokenized = replace(pieces_config, destdir=f"{text}/again", sentencepiece=str(model), source_dict=dictionary)
    preprocess(raw)
    preprocess(tokenized)
    assert DataBin(text / "raw").vocabulary("en").id("☃") in DataBin(text / "raw").split("valid", "en")[0]
    raw_files, tokenized_files = _files(text / "raw"), _files(text / "again")
    own = ("preprocess.json", "en-de.en.txt", "en-de.de.txt")
    assert all(raw_files[name] == tokenized_files[name] for name in raw_files if not name.endswith(own))
    valid = (text / "valid.en").read_text(encoding="utf-8").splitlines()
    assert DataBin(text / "raw").lines("valid", "en") == valid
    assert DataBin(text / "again").lines("valid", "en") is DataBin(text / "raw").lines("train", "en") is None


def test_text_without_target_language_is_preprocessed(text: Path) -> None:
    preprocess(_config(text, target_lang=None))
    data = DataBin(text / "bin")
    assert (data.source_lang, data.splits()) == (None, ["train", "valid"])
    assert data.tokenizer().decode(data.vocabulary().decode(data.split("train")[0])) == EN[0]


@pytest.mark.parametrize("columns", [None, Columns()])
def test_text_that_the_data_bin_would_replace_is_refused(tmp_path: Path, columns: Columns | None) -> None:
    paths = [tmp_path / "train.txt", tmp_path / "valid.txt"]
    for path in paths:
        path.write_text("text\tlabel\na\tyes\nb\tno\n")
    config = PreprocessConfig(
        columns=columns,
        tokens="words",
        train=str(paths[0]),
        valid=(str(paths[1]),),
        destdir=f"{tmp_path}/../{tmp_path.name}",
        overwrite=True,
    )
    with pytest.raises(UserError, match=r"valid\.txt, which would be replaced"):
        (preprocess if columns is None else preprocess_labelled)(config)
    assert sorted(tmp_path.iterdir()) == paths


def test_data_bin_is_replaced_only_with_overwrite(text: Path) -> None:
    preprocess(_config(text))
    (text / "bin" / "notes.txt").write_text("mine")
    (text / "bin" / "test.en-de.en.idx").write_text("of the old dictionary")
    before = _files(text / "bin")
    with pytest.raises(UserError, match=f"{text}/bin already"):
        preprocess(_config(text))
    with pytest.raises(UserError, match="vocab_size"):
        preprocess(_config(text, vocab_size=9, overwrite=True))
    assert _files(text / "bin") == before
    preprocess(_config(text, vocab_size=48, overwrite=True))
    assert len(DataBin(text / "bin").vocabulary("en")) == 48
    assert (text / "bin" / "notes.txt").read_text() == "mine"
    assert not (text / "bin" / "test.en-de.en.idx").exists()


def test_failed_preprocessing_leaves_no_directory(text: Path) -> None:
    with pytest.raises(UserError, match="vocab_size=9"):
        preprocess(_config(text, vocab_size=9))
    assert not (text / "bin").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"destdir": None}, "destdir= is not set"),
        ({"destdir": "{text}/train.en"}, "is a file"),
        ({"train": None}, "no training text"),
        ({"source_dict": "{text}/d"}, "tokens=words"),
        ({"source_dict": "{text}/d", "tokens": "words"}, "no dictionary"),
        ({"sentencepiece": "{text}/m"}, "no SentencePiece model"),
        ({"target_dict": "{text}/d"}, "joint=false"),
        ({"source_lang": "fr"}, "no text"),
        ({"tokens": "words", "vocab_size": 9}, "vocab_size=9 has no effect"),
        ({"nwords": 9}, "nwords=9 has no effect"),
        ({"vocab_size": 9999, "hard_vocab_limit": True}, r"set vocab_size to \d+ or less"),
        ({"valid": ("{text}/empty",)}, "is empty"),
        ({"valid": ("{text}/unequal",)}, "unequal.en has 2, .*unequal.de has 1"),
    ],
)
def test_errors_have_at_most_three_lines(text: Path, changes: dict[str, Any], complaint: str) -> None:
    for name, content in [("empty.en", ""), ("empty.de", ""), ("unequal.en", "a\nb\n"), ("unequal.de", "a")]:
        (text / name).write_text(content)
    filled = {
        key: value.format(text=text)
        if isinstance(value, str)
        else tuple(item.format(text=text) for item in value)
        if isinstance(value, tuple)
        else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=complaint) as error:
        preprocess(_config(text, **filled))
    assert str(error.value).count("\n") < 3
    assert not (text / "bin").exists()


def test_command_prints_splits_and_vocabulary_sizes(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            "source_lang=en",
            "target_lang=de",
            f"train={text}/train",
            f"valid=[{text}/valid,{text}/valid]",
            f"destdir={text}/bin",
            "vocab_size=64",
            "workers=1",
        ]
    )
    out = capsys.readouterr().out
    assert "valid1" in out
    assert "vocabulary: en 64, de 64" in out
    with pytest.raises(SystemExit) as exit_:
        main([f"train={text}/train", f"destdir={text}/bin"])
    assert exit_.value.code == 2
    assert "already" in capsys.readouterr().err


class TestTextAndTokens:
    """The report compares the original text with the text that can be decoded from the tokens."""

    @pytest.mark.parametrize("byte_fallback", [False, True])
    def test_report_counts_the_bytes_that_can_be_decoded(self, tmp_path: Path, byte_fallback: bool) -> None:
        """SentencePiece normalizes text and removes repeated spaces. Unknown characters are counted too."""
        lines = ["  the dog   sees ", "", "½ ﬁsh\u00a0x", "☃ unknown ☃☃", "the cat"]
        (tmp_path / "train").write_text("the dog sees the cat fish\n" * 50)
        (tmp_path / "test").write_text("".join(f"{line}\n" for line in lines))
        config = PreprocessConfig(
            train=f"{tmp_path}/train",
            test=(f"{tmp_path}/test",),
            vocab_size=300 if byte_fallback else 40,
            byte_fallback=byte_fallback,
            destdir=f"{tmp_path}/bin",
            workers=1,
        )
        report = preprocess(config)
        tokenizer = DataBin(tmp_path / "bin").tokenizer()
        kept = "".join(f"{tokenizer.normalize(line.encode()).decode()}\n" for line in lines)
        assert kept.startswith("the dog sees\n\n1⁄2 fish x\n")
        counted = DataBin(tmp_path / "bin").text_count("test")
        assert counted is not None
        assert (counted.bytes, counted.characters) == (len(kept.encode()), len(kept))
        recorded = json.loads((tmp_path / "bin" / RECORD).read_text())["splits"]["test"]["text"]
        assert recorded["bytes"] == len("".join(f"{line}\n" for line in lines).encode())
        assert f"{counted.bytes} bytes can be decoded" in report.table()

    @pytest.mark.parametrize("tokens", ["words", "sentencepiece", "characters"])
    def test_decodable_size_is_none_for_lossless_tokens(self, tmp_path: Path, tokens: Any) -> None:
        (tmp_path / "train").write_text("a b c\n" * 20 + "a b")
        size = {"vocab_size": 12} if tokens == "sentencepiece" else {}
        config = PreprocessConfig(
            tokens=tokens, train=f"{tmp_path}/train", destdir=f"{tmp_path}/bin", workers=1, **size
        )
        assert preprocess(config).splits["train"].kept is None

    def test_words_that_spell_special_symbols_are_unknown(self, tmp_path: Path) -> None:
        (tmp_path / "train").write_text("a b c\n" * 9)
        (tmp_path / "valid").write_text("a <pad> b\n</s> <s> <unk> c\n")
        config = PreprocessConfig(
            tokens="words",
            train=f"{tmp_path}/train",
            valid=(f"{tmp_path}/valid",),
            destdir=f"{tmp_path}/bin",
            workers=1,
        )
        report = preprocess(config)
        data = DataBin(tmp_path / "bin")
        vocabulary, items = data.vocabulary(), data.split("valid")
        assert vocabulary.decode(items[0]) == ["a", "<unk>", "b"]
        assert vocabulary.decode(items[1]) == ["<unk>", "<unk>", "<unk>", "c"]
        assert vocabulary.encode(["<pad>", "</s>", "a"]).tolist() == [UNK, UNK, vocabulary.id("a"), EOS]
        assert report.splits["valid"].sides["text"].special == 3
        assert "3 words of the text equal special symbols (<s>, <pad>, </s>)" in report.table()

    def test_lines_skipped_by_sentencepiece_are_reported(self, tmp_path: Path) -> None:
        (tmp_path / "train").write_text("a b c\n" * 9 + "x " * 3000 + "\n" + "d \u2585\n")
        messages: list[str] = []
        config = PreprocessConfig(train=f"{tmp_path}/train", vocab_size=12, destdir=f"{tmp_path}/bin", workers=1)
        preprocess(config, reporter=Reporter(messages.append))
        assert any("2 lines" in message for message in messages)

    @pytest.mark.parametrize("word", ["▁▂▃", "b@@", "<U+0020>"])
    def test_subword_marker_is_read_from_preprocess_json(self, tmp_path: Path, word: str) -> None:
        """The marker comes from preprocess.json, not from the spelling of a word."""
        (tmp_path / "train").write_text(f"a {word} c\n" * 9)
        config = PreprocessConfig(tokens="words", train=f"{tmp_path}/train", destdir=f"{tmp_path}/bin", workers=1)
        preprocess(config)
        assert DataBin(tmp_path / "bin").tokenizer().decode(["a", word, "c"]) == f"a {word} c"
        (tmp_path / "bin" / "preprocess.json").unlink()
        with pytest.raises(UserError, match="remove_bpe"):
            DataBin(tmp_path / "bin").tokenizer()
        assert DataBin(tmp_path / "bin", remove_bpe="none").tokenizer().separator is None
        preprocess(replace(config, remove_bpe="@@ ", overwrite=True))
        assert DataBin(tmp_path / "bin").tokenizer().decode(["b@@", "c"]) == "bc"


class TestPaths:
    def test_existing_path_is_not_split_at_commas(self, tmp_path: Path) -> None:
        for name in ("my data, v=2", "b"):
            (tmp_path / name).write_text("a\n")
        config = TextConfig(valid=(f"{tmp_path}/my data, v=2",), test=(f"{tmp_path}/b,{tmp_path}/my data, v=2",))
        assert config.prefixes()["valid"] == f"{tmp_path}/my data, v=2"
        assert config.prefixes()["test1"] == f"{tmp_path}/my data"

    def test_path_with_a_language_suffix_is_refused(self, tmp_path: Path) -> None:
        for lang in ("en", "de"):
            (tmp_path / f"train.{lang}").write_text("a\n")
        with pytest.raises(UserError, match=r"without \.en: train=.*/train$"):
            TextConfig(source_lang="en", target_lang="de", train=f"{tmp_path}/train.en").files()

    def test_missing_language_error_lists_existing_languages(self, tmp_path: Path) -> None:
        for lang in ("en", "de.gz"):
            (tmp_path / f"train.{lang}").write_text("a\n")
        with pytest.raises(UserError, match=r"train\.fr(.|\n)*exist for these languages: de, en"):
            TextConfig(source_lang="en", target_lang="fr", train=f"{tmp_path}/train").files()

    def test_named_pipe_as_text_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match=r"train=.*pipe is a pipe"):
            TextConfig(train=f"{tmp_path}/pipe").files()

    def test_a_byte_order_mark_is_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "train").write_bytes(b"\xef\xbb\xbfa b\r\n" * 1 + b"a b\r\n")
        preprocess(PreprocessConfig(tokens="words", train=f"{tmp_path}/train", destdir=f"{tmp_path}/bin", workers=1))
        assert DataBin(tmp_path / "bin").vocabulary().tokens[4:6] == ["a", "b"]


class TestShards:
    """`shard_tokens` splits the training data into several files, which are read as one split."""

    def test_shards_have_the_same_items_as_one_file(self, text: Path) -> None:
        preprocess(_config(text))
        preprocess(_config(text, destdir=f"{text}/cut", shard_tokens=60), block_bytes=200)
        whole, cut = DataBin(text / "bin"), DataBin(text / "cut")
        assert (text / "cut" / "train2.en-de.en.idx").is_file()
        for lang in ("en", "de"):
            one, several = whole.split("train", lang), cut.split("train", lang)
            assert [one[i].tolist() for i in range(len(one))] == [several[i].tolist() for i in range(len(several))]
            assert len(one) > len(cut.split("train1", lang)) > 0
            assert whole.vocabulary(lang) == cut.vocabulary(lang)

    def test_text_size_is_summed_over_the_shards(self, text: Path) -> None:
        changes = {"target_lang": None, "source_lang": None, "tokens": "bytes", "train": f"{text}/train.en"}
        changes |= {"valid": (f"{text}/valid.en",)}
        preprocess(_config(text, destdir=f"{text}/cut", shard_tokens=100, **changes), block_bytes=100)
        data = DataBin(text / "cut")
        count = data.text_count("train")
        assert count is not None
        assert count.bytes == (text / "train.en").stat().st_size == data.split("train").total
        parts = len(list((text / "cut").glob("train*.idx")))
        for suffix in ("idx", "bin"):  # a shard that is added by hand has no recorded text size
            (text / "cut" / f"train{parts}.{suffix}").write_bytes((text / "cut" / f"train.{suffix}").read_bytes())
        assert DataBin(text / "cut").text_count("train") is None
