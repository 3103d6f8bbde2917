"""Encodes a text file with an existing vocabulary into a temporary data-bin."""

from pathlib import Path

from seqtk.data.char_tokenizer import BYTE_NAMES, character_name
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.sources.databin import DataBin
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.data.vocabulary_building import Tokens

LINE_FEEDS = (BYTE_NAMES[ord("\n")], character_name("\n"))


def encode_text(path: Path, folder: Path, *, vocabulary: Vocabulary, tokenizer: Tokenizer) -> DataBin:
    """Writes a data-bin to `folder` whose split `test` is the text at `path`.

    If line feeds were tokens in training, they are tokens here too. Otherwise, each line ends in EOS.
    """
    separators: dict[str | None, Tokens] = {name: name for name in ("bytes", "characters", "lowercase_words")}
    tokens = separators.get(tokenizer.separator, "words")
    dictionary, model = folder / "given.txt", folder / "given.model"
    folder.mkdir(parents=True)
    vocabulary.save(dictionary)
    if tokenizer.model_bytes is not None:
        tokens = "sentencepiece"
        model.write_bytes(tokenizer.model_bytes)
    preprocess(
        PreprocessConfig(
            tokens=tokens,
            test=(str(path),),
            source_dict=str(dictionary) if tokens != "bytes" else None,
            sentencepiece=str(model) if tokens == "sentencepiece" else None,
            remove_bpe=tokenizer.separator if tokens == "words" else None,
            line_end=None if _has_line_feeds(vocabulary) else "eos",
            destdir=str(folder / "data-bin"),
            workers=1,
        )
    )
    return DataBin(folder / "data-bin")


def _has_line_feeds(vocabulary: Vocabulary) -> bool:
    """Returns True if line feeds were tokens of the training text."""
    return any(vocabulary.counts[vocabulary.id(name)] > 0 for name in LINE_FEEDS if name in vocabulary)
