"""Where a data-bin's vocabularies come from: SentencePiece models, dictionary files, or counts of tokenised text."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from seqtk.data.char_tokenizer import SymbolCounter, byte_vocabulary
from seqtk.data.corpus import Text, TextConfig, read_blocks, sample_lines
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.tokenizer_training import train_tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.data.word_lookup import WordCounter
from seqtk.data.workers import ordered_map
from seqtk.utils.errors import UserError

Tokens = Literal["sentencepiece", "words", "characters", "bytes"]

LineEnd = Literal["eos", "newline"]

_COUNTED_BYTES = 2 << 20  # large enough that adding up the counts of blocks costs little


@dataclass(frozen=True)
class VocabularyConfig(TextConfig):
    """How text becomes tokens and where the vocabulary of the tokens comes from."""

    tokens: Tokens = "sentencepiece"  # pieces of a model | words between white space | characters | bytes
    joint: bool = True  # one vocabulary (and one model) for both languages
    vocab_size: int = 8000  # rows of the vocabulary of a new SentencePiece model, the four special symbols included
    model_type: Literal["bpe", "unigram"] = "bpe"  # kind of the new SentencePiece model
    character_coverage: float = 0.9999  # share of all characters of the text that the new model covers
    byte_fallback: bool = False  # the new model spells the other characters in bytes, so that none is unknown
    hard_vocab_limit: bool = False  # fail, rather than make a smaller vocabulary, where the text is too small
    sentencepiece_lines: int = 2_000_000  # train the new model on this many lines at most, at regular distances
    sentencepiece: str | None = None  # an existing model instead of a new one; the source's if not joint
    target_sentencepiece: str | None = None  # an existing model of the target, if not joint
    source_dict: str | None = None  # an existing dictionary in fairseq's format; of both languages if joint
    target_dict: str | None = None  # an existing dictionary of the target, if not joint
    threshold: int = -1  # words or characters that are rarer get no row
    nwords: int = -1  # rows of a counted vocabulary at most, the four special symbols included; -1: no limit
    padding_factor: int = 8  # new vocabularies, but that of the 256 bytes, are filled up to a multiple of this
    line_end: LineEnd | None = None  # null: newline (a token as it stands) in one-sided bytes or characters, else eos

    @property
    def newlines(self) -> bool:
        """Whether line feeds are tokens. Raises UserError where they cannot be."""
        able = self.tokens in ("bytes", "characters") and len(self.langs) == 1
        if self.line_end == "newline" and not able:
            raise UserError(
                "line_end=newline is for bytes or characters of one-sided text.",
                "Set tokens=bytes or tokens=characters and leave target_lang= out, or leave line_end= out.",
            )
        return able and self.line_end != "eos"


@dataclass(frozen=True)
class Side:
    """What one language's text is encoded with. `counted`: the dictionary gets its counts from the encoded text."""

    vocabulary: Vocabulary
    tokenizer: Tokenizer | None
    counted: bool


def make_sides(
    config: VocabularyConfig, train: Text | None, *, workers: int, notify: Callable[[str], None]
) -> list[Side]:
    """What to encode each language with, in the order of `config.langs`; the very same object where it is joint."""
    separate = len(config.langs) == 2 and not config.joint
    if not separate and (config.target_dict or config.target_sentencepiece):
        raise UserError("target_dict= and target_sentencepiece= need two languages and joint=false.")
    models = (config.sentencepiece, config.target_sentencepiece)
    dictionaries = (config.source_dict, config.target_dict)
    if not separate:
        side = _make_side(config, models[0], dictionaries[0], train, workers=workers, notify=notify)
        return [side] * len(config.langs)
    parts = [Text(train.name, (path,), train.lines) for path in train.paths] if train is not None else [None, None]
    return [
        _make_side(config, model, dictionary, part, workers=workers, notify=notify)
        for model, dictionary, part in zip(models, dictionaries, parts, strict=True)
    ]


def _make_side(
    config: VocabularyConfig,
    model: str | None,
    dictionary: str | None,
    train: Text | None,
    *,
    workers: int,
    notify: Callable[[str], None],
) -> Side:
    """What to encode the text of `train`'s files with."""
    _check_asked(config, model, dictionary)
    tokenizer = Tokenizer.load(model) if model else None
    if config.tokens == "bytes":
        return Side(byte_vocabulary(), None, counted=True)
    if config.tokens != "sentencepiece":
        vocabulary = Vocabulary.load(dictionary) if dictionary else _count(config, _needed(train), workers=workers)
        return Side(vocabulary, tokenizer, counted=False)
    if tokenizer is None and dictionary:
        raise UserError(
            f"The dictionary {dictionary} is for tokens, but the text is raw.",
            "Set tokens=words if the text is tokenised, or sentencepiece= to the model that made the dictionary.",
        )
    tokenizer = tokenizer or _train(config, _needed(train), notify=notify)
    vocabulary = Vocabulary.load(dictionary) if dictionary else tokenizer.vocabulary().padded(config.padding_factor)
    return Side(vocabulary, tokenizer, counted=dictionary is None)


def _check_asked(config: VocabularyConfig, model: str | None, dictionary: str | None) -> None:
    """Refuse an existing vocabulary where the tokens leave no use for one."""
    if config.tokens == "bytes" and (model or dictionary):
        raise UserError("tokens=bytes has a vocabulary of its own: leave sentencepiece= and source_dict= out.")
    if config.tokens == "characters" and model:
        raise UserError("tokens=characters needs no model: leave sentencepiece= out.")


def _needed(train: Text | None) -> Text:
    if train is None:
        raise UserError(
            "There is no training text to learn a vocabulary from.",
            "Set train=, or take an existing vocabulary: sentencepiece=, or source_dict= with tokens=words.",
        )
    return train


def _train(config: VocabularyConfig, train: Text, *, notify: Callable[[str], None]) -> Tokenizer:
    lines = train.lines * len(train.paths)
    names = " and ".join(map(str, train.paths))
    notify(f"learning {config.model_type} pieces from {min(lines, config.sentencepiece_lines):,} lines of {names}")
    tokenizer = train_tokenizer(
        sample_lines(train.paths, lines=lines, most=config.sentencepiece_lines),
        vocab_size=config.vocab_size,
        model_type=config.model_type,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        hard_vocab_limit=config.hard_vocab_limit,
    )
    size = len(tokenizer.vocabulary())
    if size < config.vocab_size:
        notify(f"the text gives a vocabulary of {size:,} only, not of vocab_size={config.vocab_size:,}")
    return tokenizer


def _count(config: VocabularyConfig, train: Text, *, workers: int) -> Vocabulary:
    """The vocabulary of the words or characters of all of `train`'s files."""
    blocks = ((lines,) for path in train.paths for (lines,) in read_blocks([path], block_bytes=_COUNTED_BYTES))
    counter = SymbolCounter(newlines=config.newlines) if config.tokens == "characters" else WordCounter()
    counts: Counter[bytes] = Counter()
    for block in ordered_map(counter, blocks, workers=workers):
        counts.update(block)
    return Vocabulary.from_counts(
        {word.decode("utf-8"): count for word, count in counts.items()},
        threshold=config.threshold,
        nwords=config.nwords,
        padding_factor=config.padding_factor,
    )
