"""Data sources: data-bins, and subclasses of TextSource that read text into memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from seqtk.data.blocks import TokenBlocks
from seqtk.data.sources import DataBinSource, SourceConfig, TextSource
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import EOS, UNK, Vocabulary
from seqtk.utils.errors import UserError

PAIRS = {"train": [("b a", "x"), ("a", "y x")], "valid": [("c", "x")]}


@dataclass(frozen=True)
class PairsConfig(SourceConfig):
    """A config without settings."""


class Pairs(TextSource):
    def read(self, split: str) -> Iterable[Sequence[str]]:
        return PAIRS[split]


class Lines(TextSource):
    sides = ("text",)

    def read(self, split: str) -> Iterable[Sequence[str]]:
        return [(source,) for source, _ in PAIRS[split]]


class TestText:
    def test_vocabularies_are_built_from_the_training_text(self) -> None:
        source = Pairs(PairsConfig(), data="")
        assert source.vocabulary("source").tokens[4:6] == ["a", "b"]
        assert source.vocabulary("target").tokens[4:6] == ["x", "y"]

    def test_items_end_in_eos(self) -> None:
        source = Pairs(PairsConfig(), data="", source_lang="en", target_lang="de")
        items = source.split("train", "en")
        assert [item.tolist() for item in (items[0], items[1])] == [[5, 4, EOS], [4, EOS]]
        assert (items.total, items.sizes.tolist()) == (5, [3, 2])
        assert items.stream(1, 4).tolist() == [4, EOS, 4]
        assert source.lines("train", "de") == ["x", "y x"]

    def test_source_uses_the_vocabulary_of_a_model(self) -> None:
        source = Pairs(PairsConfig(), data="")
        source.use("source", Vocabulary(["c"]), Tokenizer.plain())
        assert source.split("valid", "source")[0].tolist() == [4, EOS]
        assert source.split("train", "source")[1].tolist() == [UNK, EOS]

    def test_monolingual_text_has_a_size(self) -> None:
        source = Lines(PairsConfig(), data="")
        assert source.target_lang is None
        assert (source.text_count("train").words, source.text_count("train").bytes) == (3, 6)
        assert len(TokenBlocks(source.split("train", "text"), tokens_per_sample=2)) == 3
        assert source.lines("train") == source.lines("train", "text")

    def test_example_without_a_target_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PAIRS, "test", [("a", "x"), ("b",)])
        with pytest.raises(UserError, match="Example 2 of split 'test'"):
            Pairs(PairsConfig(), data="p.tsv").split("test", "target")


class TestDataBin:
    def test_source_reads_both_languages_of_a_data_bin(self, tiny_corpus: Path) -> None:
        source = DataBinSource(data=str(tiny_corpus))
        assert (source.source_lang, source.target_lang) == ("en", "de")
        assert len(source.split("train", "en")) == len(source.split("train", "de"))

    def test_different_vocabulary_is_refused(self, tiny_corpus: Path) -> None:
        source = DataBinSource(data=str(tiny_corpus))
        source.use("en", source.vocabulary("en"), source.tokenizer("en"))
        with pytest.raises(UserError, match="'en'"):
            source.use("en", Vocabulary(["a"]), Tokenizer.plain())

    def test_existing_path_may_contain_a_comma(self, tiny_corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "my,data").symlink_to(tiny_corpus)
        assert len(DataBinSource(data=str(tmp_path / "my,data")).split("valid", "en"))

    def test_epochs_alternate_between_shards(self, tiny_corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "again").symlink_to(tiny_corpus)
        source = DataBinSource(data=f"{tiny_corpus},{tmp_path / 'again'}")
        assert [len(source.split("train", "en", epoch=epoch)) for epoch in (1, 2, 3)] == [300] * 3

    def test_shards_separated_by_colons_are_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"{tiny_corpus},{tiny_corpus}"):
            DataBinSource(data=f"{tiny_corpus}:{tiny_corpus}")

    def test_unset_data_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"task\.data"):
            DataBinSource(data="")
