"""Builds the vocabularies of a data-bin from SentencePiece models, dictionary files, or counts of tokenized text."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from seqtk.config.fields import setting, written
from seqtk.data.char_tokenizer import byte_vocabulary, count_characters
from seqtk.data.corpus import Text, TextConfig, read_blocks, sample_lines
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.tokenizer_training import MAX_LINE_BYTES, RESERVED, TrainingSample, train_tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.data.word_lookup import WordCounter
from seqtk.data.workers import ordered_map
from seqtk.utils.errors import UserError, how_many

Tokens = Literal["sentencepiece", "words", "lowercase_words", "characters", "bytes"]

LineEnd = Literal["eos", "newline"]

_OF_NEW_MODELS = (
    "vocab_size",
    "model_type",
    "character_coverage",
    "byte_fallback",
    "hard_vocab_limit",
    "sentencepiece_lines",
)
"""Settings that only the training of a SentencePiece model uses."""
_OF_COUNTED_TOKENS = ("threshold", "nwords")
"""Settings that only a new dictionary of counted tokens uses."""

_COUNTED_BYTES = 2 << 20  # with blocks of this size, adding their counts takes little time


@dataclass(frozen=True)
class VocabularyConfig(TextConfig):
    """Settings of tokenization and of the vocabulary."""

    tokens: Tokens = setting(
        "sentencepiece",
        help="Kind of tokens: pieces of a SentencePiece model, words between white space, words in lower case without "
        "punctuation, characters or bytes.",
    )
    remove_bpe: str | None = setting(
        None,
        help="With tokens=words: subword marker in the text, such as '@@ ' or sentencepiece. Detokenization removes "
        "it. null: no marker.",
    )
    joint: bool = setting(True, help="Use one vocabulary and one SentencePiece model for both languages.")
    vocab_size: int = setting(
        8000,
        at_least=1,
        at_most=10_000_000,
        help="Size of the vocabulary of a new SentencePiece model, including four special symbols.",
    )
    model_type: Literal["bpe", "unigram"] = setting("bpe", help="Type of the new SentencePiece model.")
    character_coverage: float = setting(
        0.9999,
        above=0,
        at_most=1,
        help="Share of the text's characters that the new model covers. Rarer characters are unknown tokens.",
    )
    byte_fallback: bool = setting(
        False, help="Encode characters outside the new model's vocabulary as bytes, so that none is unknown."
    )
    hard_vocab_limit: bool = setting(
        False, help="Fail if the text is too small for vocab_size. false: the vocabulary is then smaller."
    )
    sentencepiece_lines: int = setting(
        2_000_000, at_least=1, help="Maximum number of lines (evenly spaced in the text) to train the new model on."
    )
    sentencepiece: str | None = setting(
        None, help="Existing SentencePiece model to use. With joint=false: the model of the source."
    )
    target_sentencepiece: str | None = setting(
        None, help="With joint=false: existing SentencePiece model of the target."
    )
    source_dict: str | None = setting(
        None, help="Existing dictionary in fairseq's format. With joint=false: the dictionary of the source."
    )
    target_dict: str | None = setting(None, help="With joint=false: existing dictionary of the target.")
    threshold: int = setting(
        -1, at_least=-1, help="Minimum count of words or characters. Rarer ones are unknown tokens. -1: no minimum."
    )
    nwords: int = setting(
        -1,
        at_least=-1,
        help="Maximum size of a vocabulary of words or characters, including four special symbols. -1: no limit.",
    )
    padding_factor: int = setting(
        8, at_least=1, help="Pad new vocabularies to a multiple of this size, except for tokens=bytes."
    )
    line_end: LineEnd | None = setting(
        None,
        help="Token at the end of each line: eos, or newline (the line feed of the text). null: newline for "
        "monolingual bytes or characters, else eos.",
    )

    @property
    def newlines(self) -> bool:
        """True if line feeds are tokens. Raises UserError if they cannot be tokens."""
        possible = self.tokens in ("bytes", "characters") and len(self.langs) == 1
        if self.line_end == "newline" and not possible:
            raise UserError(
                "line_end=newline requires bytes or characters of monolingual text.",
                "Set tokens=bytes or tokens=characters and remove target_lang=, or remove line_end=.",
            )
        return possible and self.line_end != "eos"


@dataclass(frozen=True)
class LanguageSpec:
    """Vocabulary and tokenizer of one language. `counted` means that tokens are counted in the encoded text."""

    vocabulary: Vocabulary
    tokenizer: Tokenizer | None
    counted: bool


def make_specs(
    config: VocabularyConfig, train: Text | None, *, workers: int, notify: Callable[[str], None]
) -> list[LanguageSpec]:
    """Returns the `LanguageSpec` of each language. With `config.joint`, both languages share one object."""
    separate = len(config.langs) == 2 and not config.joint
    if not separate and (config.target_dict or config.target_sentencepiece):
        raise UserError("target_dict= and target_sentencepiece= require two languages and joint=false.")
    models = (config.sentencepiece, config.target_sentencepiece)
    dictionaries = (config.source_dict, config.target_dict)
    _check_has_effect(
        config, new_model=None in models[: 1 + separate], new_dictionary=None in dictionaries[: 1 + separate]
    )
    if not separate:
        spec = _make_spec(config, models[0], dictionaries[0], train, workers=workers, notify=notify)
        return [spec] * len(config.langs)
    parts = [Text(train.name, (path,), train.lines) for path in train.paths] if train is not None else [None, None]
    return [
        _make_spec(config, model, dictionary, part, workers=workers, notify=notify)
        for model, dictionary, part in zip(models, dictionaries, parts, strict=True)
    ]


def _make_spec(
    config: VocabularyConfig,
    model: str | None,
    dictionary: str | None,
    train: Text | None,
    *,
    workers: int,
    notify: Callable[[str], None],
) -> LanguageSpec:
    """Builds the `LanguageSpec` from the text in the files of `train`."""
    _check_settings(config, model, dictionary)
    tokenizer = Tokenizer.load(model) if model else None
    if config.tokens == "bytes":
        return LanguageSpec(byte_vocabulary(), None, counted=True)
    if config.tokens != "sentencepiece":
        vocabulary = Vocabulary.load(dictionary) if dictionary else _count(config, _require(train), workers=workers)
        return LanguageSpec(vocabulary, tokenizer, counted=False)
    if tokenizer is None and dictionary:
        raise UserError(
            f"The dictionary {dictionary} requires tokenized text, but tokens=sentencepiece reads raw text.",
            "Set tokens=words if the text is tokenized, or sentencepiece= to the model that made the dictionary.",
        )
    tokenizer = tokenizer or _train(config, _require(train), notify=notify)
    vocabulary = Vocabulary.load(dictionary) if dictionary else tokenizer.vocabulary().padded(config.padding_factor)
    return LanguageSpec(vocabulary, tokenizer, counted=dictionary is None)


def _check_has_effect(config: VocabularyConfig, *, new_model: bool, new_dictionary: bool) -> None:
    """Raises UserError if a setting of new SentencePiece models, or of counted words or characters, has no effect."""
    trains = new_model and config.tokens == "sentencepiece"
    counts = new_dictionary and config.tokens in ("words", "lowercase_words", "characters")
    for names, used, about in (
        (_OF_NEW_MODELS, trains, "It is a setting of new SentencePiece models. For words or characters, set nwords=."),
        (_OF_COUNTED_TOKENS, counts, "It is a setting of new dictionaries of words or characters."),
    ):
        for name in names:
            if not used and getattr(config, name) != getattr(VocabularyConfig, name):
                raise UserError(f"{name}={written(getattr(config, name))} has no effect here.", about, "Remove it.")


def _check_settings(config: VocabularyConfig, model: str | None, dictionary: str | None) -> None:
    """Raises UserError if a setting has no effect with the value of `config.tokens`."""
    if config.remove_bpe is not None and config.tokens != "words":
        raise UserError(f"remove_bpe={config.remove_bpe} requires tokens=words.", "Remove it.")
    if config.remove_bpe is not None:
        Tokenizer.plain(config.remove_bpe)
    if config.tokens == "bytes" and (model or dictionary):
        raise UserError("tokens=bytes has a fixed vocabulary.", "Remove sentencepiece= and source_dict=.")
    if config.tokens == "characters" and model:
        raise UserError("tokens=characters uses no SentencePiece model.", "Remove sentencepiece=.")


def _require(train: Text | None) -> Text:
    if train is None:
        raise UserError(
            "There is no training text to build a vocabulary from.",
            "Set train=, or use an existing vocabulary: sentencepiece=, or source_dict= with tokens=words.",
        )
    return train


def _train(config: VocabularyConfig, train: Text, *, notify: Callable[[str], None]) -> Tokenizer:
    lines = train.lines * len(train.paths)
    names = " and ".join(map(str, train.paths))
    notify(f"training a {config.model_type} model on {min(lines, config.sentencepiece_lines):,} lines of {names}")
    sample = TrainingSample(sample_lines(train.paths, lines=lines, max_lines=config.sentencepiece_lines))
    tokenizer = train_tokenizer(
        sample,
        vocab_size=config.vocab_size,
        model_type=config.model_type,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        hard_vocab_limit=config.hard_vocab_limit,
    )
    if sample.skipped:
        notify(
            f"SentencePiece was not trained on {how_many(sample.skipped, 'line')} longer than "
            f"{MAX_LINE_BYTES:,} bytes or with {RESERVED.decode()}; they are encoded like all other lines"
        )
    size = len(tokenizer.vocabulary())
    if size < config.vocab_size:
        notify(f"the text is too small for vocab_size={config.vocab_size:,}: the vocabulary has {size:,} tokens")
    return tokenizer


def _count(config: VocabularyConfig, train: Text, *, workers: int) -> Vocabulary:
    """Counts the words or characters in all files of `train`, and builds their vocabulary."""
    blocks = (block for path in train.paths for block in read_blocks([path], block_bytes=_COUNTED_BYTES))
    counter = (
        partial(count_characters, newlines=config.newlines)
        if config.tokens == "characters"
        else WordCounter(lowercase=config.tokens == "lowercase_words")
    )
    counts: Counter[bytes] = Counter()
    for block in ordered_map(counter, blocks, workers=workers):
        counts.update(block)
    return Vocabulary.from_counts(
        {word.decode("utf-8"): count for word, count in counts.items()},
        threshold=config.threshold,
        nwords=config.nwords,
        padding_factor=config.padding_factor,
    )
