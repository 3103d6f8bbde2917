"""Data-bin directories: languages, splits, and errors about missing files."""

import json
from pathlib import Path

import pytest

from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.sources.databin import DataBin
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError


def _make(directory: Path, *names: str, dictionaries: tuple[str, ...] = ()) -> Path:
    directory.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        with IndexedWriter(directory / name, vocabulary_size=9) as writer:
            writer.append([4 + number, 2])
    for name in dictionaries:
        Vocabulary(["a", "b", "c", "d"]).save(directory / name)
    return directory


@pytest.fixture
def en_de(tmp_path: Path) -> Path:
    names = [f"{split}.en-de.{lang}" for split in ("train", "valid", "valid1") for lang in ("en", "de")]
    return _make(tmp_path / "bin", *names, "test.en-de.en", dictionaries=("dict.en.txt", "dict.de.txt"))


def test_languages_are_inferred_from_file_names(en_de: Path) -> None:
    data = DataBin(en_de)
    assert (data.source_lang, data.target_lang) == ("en", "de")
    assert data.splits() == ["train", "valid", "valid1"]
    assert data.split("valid", "de")[0].tolist() == [7, 2]
    assert data.vocabulary("de").tokens[4:] == ["a", "b", "c", "d"]


def test_data_bin_is_read_in_both_directions(en_de: Path) -> None:
    for data in (DataBin(en_de, source_lang="de"), DataBin(en_de, target_lang="en")):
        assert (data.source_lang, data.target_lang) == ("de", "en")
        assert data.split("train", "de")[0].tolist() == [5, 2]


def test_languages_may_have_hyphens(tmp_path: Path) -> None:
    names = [f"train.zh-Hans-pt-BR.{lang}" for lang in ("zh-Hans", "pt-BR")]
    data = DataBin(_make(tmp_path / "bin", *names))
    assert (data.source_lang, data.target_lang) == ("zh-Hans", "pt-BR")


def test_monolingual_directories_are_read(tmp_path: Path) -> None:
    data = DataBin(_make(tmp_path / "lm", "train", "valid", dictionaries=("dict.txt",)))
    assert (data.source_lang, data.target_lang, data.splits()) == (None, None, ["train", "valid"])
    assert data.split("valid")[0].tolist() == [5, 2]
    assert len(data.vocabulary()) == 8
    assert DataBin(tmp_path / "lm", source_lang="en").source_lang is None
    named = DataBin(_make(tmp_path / "named", "train.en-None.en", dictionaries=("dict.en.txt",)))
    assert (named.source_lang, named.target_lang, named.splits()) == ("en", None, ["train"])


def _record(directory: Path, **parts: object) -> None:
    (directory / "preprocess.json").write_text(json.dumps(parts))


def test_error_names_a_missing_sentencepiece_model(en_de: Path) -> None:
    assert DataBin(en_de).tokenizer("de").encode("a b") == ["a", "b"]
    _record(en_de, settings={"tokens": "words"})
    assert DataBin(en_de).tokenizer("de").encode("a b") == ["a", "b"]
    for joint, name in ((True, "sentencepiece.model"), (False, r"sentencepiece\.de\.model")):
        _record(en_de, settings={"tokens": "sentencepiece", "joint": joint})
        with pytest.raises(UserError, match=f"There is no {name} in "):
            DataBin(en_de).tokenizer("de")


def test_a_truncated_dictionary_is_refused(en_de: Path) -> None:
    _record(en_de, vocabulary={"en": 8, "de": 9})
    assert len(DataBin(en_de).vocabulary("en")) == 8
    with pytest.raises(UserError, match=r"dict\.de\.txt has 8 tokens, but had 9 when the data-bin was made"):
        DataBin(en_de).vocabulary("de")
    monolingual = _make(en_de.parent / "lm", "train", dictionaries=("dict.txt",))
    _record(monolingual, vocabulary={"text": 7})
    with pytest.raises(UserError, match=r"dict\.txt has 8 tokens, but had 7"):
        DataBin(monolingual).vocabulary()


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}'])
def test_damaged_preprocess_json_is_refused(en_de: Path, content: str) -> None:
    (en_de / "preprocess.json").write_text(content)
    with pytest.raises(UserError, match=r"preprocess\.json is not a valid record of seqtk-preprocess"):
        DataBin(en_de).tokenizer("de")


def test_data_bin_with_two_pairs_requires_languages(tmp_path: Path) -> None:
    names = [f"train.{pair}.{lang}" for pair in ("de-en", "fr-en") for lang in pair.split("-")]
    directory = _make(tmp_path / "bin", *names)
    with pytest.raises(UserError, match="de-en, fr-en"):
        DataBin(directory)
    with pytest.raises(UserError, match=r"task\.source_lang"):
        DataBin(directory, source_lang="en")
    assert DataBin(directory, source_lang="fr").target_lang == "en"


def test_error_for_a_missing_file_suggests_similar_names(en_de: Path) -> None:
    for action, near in [
        (lambda: DataBin(en_de.parent / "bim"), "Did you mean 'bin'"),
        (lambda: DataBin(en_de, source_lang="fr"), "en-de"),
        (lambda: DataBin(en_de).split("vald", "en"), "Did you mean 'valid'"),
        (lambda: DataBin(en_de).vocabulary("dee"), r"Did you mean 'dict\.de\.txt'"),
        (lambda: DataBin(_make(en_de.parent / "empty")), "not a data-bin"),
    ]:
        with pytest.raises(UserError, match=near) as error:
            action()
        assert str(error.value).count("\n") < 3


def test_word_alignments_are_not_splits(en_de: Path) -> None:
    _make(en_de, "train.align.en-de")
    assert DataBin(en_de).splits() == ["train", "valid", "valid1"]
