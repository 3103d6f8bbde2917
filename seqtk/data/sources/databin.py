"""Data-bins as a source: directories that seqtk-preprocess or fairseq-preprocess wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtk.config.fields import setting
from seqtk.data.databin import DataBin
from seqtk.data.report import TextCount
from seqtk.data.sources.base import Items, Source, SourceConfig, sources
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.utils.errors import UserError, near_path


@dataclass(frozen=True)
class DataBinSourceConfig(SourceConfig):
    """A data-bin folder."""

    remove_bpe: str | None = setting(
        None,
        help="Subword marker of the tokens, such as '@@ ' or sentencepiece, for a folder that fairseq-preprocess made; "
        "none: the tokens are words. null: as seqtk-preprocess recorded it.",
    )


@sources.register("databin", DataBinSourceConfig)
class DataBinSource(Source):
    """One data-bin directory, or several separated by commas: shards.

    Each epoch trains on one shard, in turn. Vocabularies, tokenizers, and the other splits are those of the first.
    """

    def __init__(
        self,
        config: Any = DataBinSourceConfig(),
        *,
        data: str,
        source_lang: str | None = None,
        target_lang: str | None = None,
        made_by: str = "",
    ) -> None:
        super().__init__(config, data=data, source_lang=source_lang, target_lang=target_lang, made_by=made_by)
        directories = (
            [data] if data and Path(data).is_dir() else [directory for directory in data.split(",") if directory]
        )
        if not directories:
            raise UserError("task.data is not set.", "Set it to a data-bin directory.")
        self._shards = [self._open(directory) for directory in directories]
        self._data = self._shards[0]
        self.source_lang, self.target_lang = self._data.source_lang, self._data.target_lang
        for shard in self._shards[1:]:  # checked here rather than in the epoch that reads them
            for lang in {self.source_lang, self.target_lang or self.source_lang}:
                if shard.vocabulary(lang) != self._data.vocabulary(lang):
                    raise UserError(
                        f"The shards {self._data.directory} and {shard.directory} have different dictionaries.",
                        "Preprocess all other shards with source_dict= (or sentencepiece=) of the first.",
                    )
                shard.split("train", lang)

    def _open(self, directory: str) -> DataBin:
        if self.made_by and not any(Path(directory).glob("dict*.txt")):
            raise UserError(
                f"There is no data-bin folder {directory}.",
                *near_path(Path(directory), suits=Path.is_dir),
                f"The recipe's own data is made by: {self.made_by}",
            )
        return DataBin(
            directory,
            source_lang=self.source_lang,
            target_lang=self.target_lang,
            remove_bpe=self.config.remove_bpe,
        )

    def vocabulary(self, lang: str | None = None) -> Vocabulary:
        return self._data.vocabulary(lang)

    def tokenizer(self, lang: str | None = None) -> Tokenizer:
        return self._data.tokenizer(lang)

    def split(self, name: str, lang: str | None = None, *, epoch: int = 1) -> Items:
        return self._shards[(epoch - 1) % len(self._shards)].split(name, lang)

    def lines(self, name: str, lang: str | None = None) -> list[str] | None:
        return self._data.lines(name, lang)

    def text_count(self, name: str) -> TextCount | None:
        return self._data.text_count(name)
