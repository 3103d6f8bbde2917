"""How translations are written: plain text, fairseq's lines, or JSON lines. Layouts: `docs/decoding.md`."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.decode import Translation

Format = Literal["text", "fairseq", "json"]


class Languages(Protocol):
    """Who knows the tokens of both sides."""

    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer


class Writer:
    """Turns translations into lines of text.

    `detokenize` false leaves tokens apart; `free_text`, for language models, gives every hypothesis, with its line
    feeds (but in fairseq's lines), behind its prompt as it was given.
    """

    def __init__(self, languages: Languages, *, detokenize: bool = True, free_text: bool = False) -> None:
        self.languages = languages
        self.detokenize, self.free_text = detokenize, free_text

    def lines(self, translation: Translation, format: Format) -> Iterator[str]:
        """The lines that stand for one translation."""
        makers: dict[Format, Callable[[Translation], Iterator[str]]] = {
            "text": self._text, "fairseq": self._fairseq, "json": self._json
        }  # fmt: skip
        return makers[format](translation)

    def hypothesis(self, translation: Translation, rank: int = 0) -> str:
        """The text of one hypothesis."""
        vocabulary, tokenizer = self.languages.target_vocabulary, self.languages.target_tokenizer
        text = self._join(tokenizer, vocabulary.decode(translation.hypotheses[rank].tokens))
        sentence = translation.sentence
        if not (self.free_text and self.detokenize) or sentence.source_text is None or sentence.prefix is None:
            return text
        return _behind(sentence.source_text, self._join(tokenizer, vocabulary.decode(sentence.prefix)), text)

    def source(self, translation: Translation) -> str:
        """The source as it was given, or as its ids say."""
        sentence = translation.sentence
        if sentence.source_text is not None and self.detokenize:
            return sentence.source_text
        return self._join(self.languages.source_tokenizer, self.languages.source_vocabulary.decode(sentence.source))

    def reference(self, translation: Translation, *, unknown: str = "<unk>") -> str | None:
        """The reference as it was given, or as its ids say with `unknown` for what has none; None where none is."""
        sentence = translation.sentence
        if sentence.target_text is not None and self.detokenize:
            return sentence.target_text
        if sentence.target is None:
            return None
        tokens = self.languages.target_vocabulary.decode(sentence.target)
        return self._join(self.languages.target_tokenizer, [unknown if token == "<unk>" else token for token in tokens])

    def _text(self, translation: Translation) -> Iterator[str]:
        for rank in range(len(translation.hypotheses) if self.free_text else 1):
            yield self.hypothesis(translation, rank)

    def _json(self, translation: Translation) -> Iterator[str]:
        decode = self.languages.target_vocabulary.decode
        reference = self.reference(translation)
        yield json.dumps(
            {
                "index": translation.index,
                "source": self.source(translation),
                **({} if reference is None else {"reference": reference}),
                "hypotheses": [
                    {
                        "text": self.hypothesis(translation, rank),
                        "score": hypothesis.score if math.isfinite(hypothesis.score) else None,
                        "tokens": [*decode(hypothesis.tokens), "</s>"],
                        "token_scores": [x if math.isfinite(x) else None for x in hypothesis.token_scores],
                    }
                    for rank, hypothesis in enumerate(translation.hypotheses)
                ],
            },
            ensure_ascii=False,
        )

    def _fairseq(self, translation: Translation) -> Iterator[str]:
        number = translation.index
        yield f"S-{number}\t{self.source(translation)}"
        # An unknown word of the reference is marked, so that no hypothesis can be equal to it.
        reference = self.reference(translation, unknown="<<unk>>")
        if reference is not None:
            yield f"T-{number}\t{reference}"
        for rank, hypothesis in enumerate(translation.hypotheses):
            score = hypothesis.score / math.log(2)
            tokens = _one_line(" ".join(self.languages.target_vocabulary.decode(hypothesis.tokens)))
            yield f"H-{number}\t{score}\t{tokens}"
            yield f"D-{number}\t{score}\t{_one_line(self.hypothesis(translation, rank))}"
            yield f"P-{number}\t{' '.join(f'{x / math.log(2):.4f}' for x in hypothesis.token_scores)}"

    def _join(self, tokenizer: Tokenizer, tokens: list[str]) -> str:
        text = tokenizer.decode(tokens) if self.detokenize else " ".join(tokens)
        return text if self.free_text else _one_line(text)


def _behind(given: str, read: str, text: str) -> str:
    """A `text` with a prompt as it was given in the place of what was read of it, without words that have no token."""
    if not text.startswith(read):
        return text
    rest = text.removeprefix(read)
    # What white space the tokens do not hold stands in the prompt already.
    both = given[-1:].isspace() and rest[:1].isspace() and not read[-1:].isspace()
    return given + rest[both:]


def _one_line(text: str) -> str:
    """`text` with spaces for ends of lines, which a vocabulary with bytes in it can spell."""
    return text.replace("\r", " ").replace("\n", " ")
