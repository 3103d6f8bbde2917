"""Output formats of decoding: plain text, the lines of fairseq, or JSON lines (see `docs/decoding.md`)."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.decode import Translation

Format = Literal["text", "fairseq", "json"]


TEXT_SEPARATOR = "---"
"""With format=text and several outputs for a prompt, this line follows each output."""


class Languages(Protocol):
    """Protocol of tasks with vocabularies and tokenizers of source and target: translation and language modeling."""

    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer


class Writer:
    """Converts translations into lines of text.

    Args:
        languages: The task, or an object with its vocabularies and tokenizers.
        detokenize: True to detokenize the outputs, False to write tokens separated by spaces.
        free_text: True for language models. The format "text" then has all hypotheses, and line feeds are kept, except
            in the format "fairseq".
    """

    def __init__(self, languages: Languages, *, detokenize: bool = True, free_text: bool = False) -> None:
        self.languages = languages
        self.detokenize, self.free_text = detokenize, free_text

    def lines(self, translation: Translation, format: Format) -> Iterator[str]:
        """Returns the lines of output for one translation."""
        formatters: dict[Format, Callable[[Translation], Iterator[str]]] = {
            "text": self._text, "fairseq": self._fairseq, "json": self._json
        }  # fmt: skip
        return formatters[format](translation)

    def hypothesis(self, translation: Translation, rank: int = 0) -> str:
        """Returns the text of one hypothesis. It begins with the input text of the prefix or prompt."""
        vocabulary, tokenizer = self.languages.target_vocabulary, self.languages.target_tokenizer
        text = self._join(tokenizer, vocabulary.decode(translation.hypotheses[rank].tokens))
        sentence = translation.sentence
        if not self.detokenize or sentence.prefix_text is None or sentence.prefix is None:
            return text
        prefix = self._join(tokenizer, vocabulary.decode(sentence.prefix))
        return _replace_prefix(text, prefix, sentence.prefix_text)

    def source(self, translation: Translation) -> str:
        """Returns the input text of the source or, if there is no text or `detokenize` is off, its decoded ids."""
        sentence = translation.sentence
        if sentence.source_text is not None and self.detokenize:
            return sentence.source_text
        return self._join(self.languages.source_tokenizer, self.languages.source_vocabulary.decode(sentence.source))

    def references(self, translation: Translation, *, unknown: str = "<unk>") -> tuple[str, ...]:
        """Returns the texts of the references or, if there are none or `detokenize` is off, the decoded target.

        The decoded target contains `unknown` in place of unknown tokens. If there is no target, the tuple is empty.
        """
        sentence = translation.sentence
        if sentence.references and self.detokenize:
            return sentence.references
        if sentence.target is None:
            return ()
        tokens = self.languages.target_vocabulary.decode(sentence.target)
        tokens = [unknown if token == "<unk>" else token for token in tokens]
        return (self._join(self.languages.target_tokenizer, tokens),)

    def _text(self, translation: Translation) -> Iterator[str]:
        if not self.free_text:
            yield self.hypothesis(translation)
            return
        several = len(translation.hypotheses) > 1
        for rank in range(len(translation.hypotheses)):
            yield self.hypothesis(translation, rank)
            if several:
                yield TEXT_SEPARATOR

    def _json(self, translation: Translation) -> Iterator[str]:
        decode = self.languages.target_vocabulary.decode
        references = self.references(translation)
        yield json.dumps(
            {
                "index": translation.sentence.index,
                "source": self.source(translation),
                **({"reference": references[0]} if references else {}),
                **({"references": references} if len(references) > 1 else {}),
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
        number = translation.sentence.index
        yield f"S-{number}\t{self.source(translation)}"
        # Unknown words of a reference are written as <<unk>>, so that <unk> in a hypothesis does not match them.
        for reference in self.references(translation, unknown="<<unk>>"):
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


def _replace_prefix(text: str, decoded: str, original: str) -> str:
    """Replaces the decoded prefix at the start of `text` by the original text of the prefix."""
    if not text.startswith(decoded):
        return text
    rest = text.removeprefix(decoded)
    # White space at the end of the prefix may have no token, and can then be part of the next token.
    repeated = original[-1:].isspace() and rest[:1].isspace() and not decoded[-1:].isspace()
    return original + rest[repeated:]


def _one_line(text: str) -> str:
    """Replaces line ends in `text` by spaces. Models with a vocabulary of bytes can produce line ends."""
    return text.replace("\r", " ").replace("\n", " ")
