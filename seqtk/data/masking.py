"""Masking for masked language models (Devlin et al. 2019, BERT, section 3.1): which tokens are hidden and predicted.

Dynamic, as in RoBERTa: each epoch masks anew. A mask is a pure function of (seed, epoch, example): it does not depend
on batches, worker processes or where a run resumed. N tokens of an example, W words of it, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.data import char_tokenizer as symbols
from seqtk.data.blocks import TokenBlocks
from seqtk.data.tokenizer import SPACE_PIECE, Tokenizer
from seqtk.data.vocabulary import BOS, EOS, PAD, Vocabulary
from seqtk.utils.errors import UserError

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MASK = BOS
"""The id that hides a token: `<s>`, which stands in no text, so that the vocabulary needs no further token."""
EVALUATION = 0
"""In place of the epoch for splits that are not trained on, whose masks are the same in every run."""


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are predicted, and what stands in their place."""

    rate: float = setting(0.15, above=0, at_most=1, help="The share of words, or of tokens, that is predicted.")
    masked: float = setting(0.8, at_least=0, at_most=1, help="The share of these that is hidden by the mask.")
    random: float = setting(
        0.1, at_least=0, at_most=1, help="The share of these that is replaced by a random token. The rest stays."
    )
    whole_words: bool = setting(False, help="Predict all tokens of a word, or none.")
    seed: int = setting(1, at_least=0, at_most=2**63 - 1, help="Seed of the masks of the training text.")

    def check(self) -> None:
        """Raises UserError if the shares exceed 1."""
        if self.masked + self.random > 1:
            raise UserError(
                f"task.masking.masked={self.masked} and task.masking.random={self.random} exceed 1 together.",
                "The rest of the predicted tokens stays as it is.",
            )


class Masking:
    """Masks examples of one vocabulary.

    Args:
        config: The rates.
        vocabulary: Gives the tokens that are drawn at random: all but specials and fillers.
        tokenizer: Says where words begin, for `whole_words`.

    Raises:
        UserError: If the rates exceed 1, or the tokens do not show where words begin.
    """

    def __init__(self, config: MaskingConfig, *, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
        config.check()
        self.config = config
        hidden = {EOS, *vocabulary.never_generated}
        self.drawn = np.array([id_ for id_ in range(len(vocabulary)) if id_ not in hidden], dtype=np.int64)
        self.begins_V: Flags = np.ones(len(vocabulary), dtype=bool)
        self.joins_V: Flags = np.zeros(len(vocabulary), dtype=bool)
        if config.whole_words:
            self.begins_V, self.joins_V = word_flags(vocabulary, tokenizer)

    def __call__(self, ids_N: Ids, *, epoch: int, example: int) -> tuple[Ids, Ids]:
        """Masks one example. At least one token is predicted.

        Of W words, ⌊rate · W + u⌋ are drawn without replacement, where u is uniform in [0, 1): the expected share is
        the rate. Each of their tokens is hidden, replaced or kept independently. BOS, PAD and EOS are no words, unless
        the example consists of them.

        Args:
            ids_N: The tokens.
            epoch: The epoch, from 1, or EVALUATION.
            example: The number of the example.

        Returns:
            source_N, what the model reads, and target_N, which is PAD where nothing is predicted.
        """
        config, count = self.config, len(ids_N)
        seed = config.seed if epoch != EVALUATION else 0
        # A stream that NumPy has frozen, so that a run resumed under another version sees the same masks.
        random = np.random.RandomState(np.random.PCG64(np.random.SeedSequence([seed, epoch, example])))
        extra, key_N, roll_N, draw_N = np.split(random.random_sample(3 * count + 1), [1, count + 1, 2 * count + 1])
        eligible_N = ids_N > EOS
        if not eligible_N.any():
            eligible_N = np.ones(count, dtype=bool)
        first_N = eligible_N & (self.begins_V[ids_N] | ~np.append(False, (eligible_N & self.joins_V[ids_N])[:-1]))
        word_N = np.cumsum(first_N) - 1
        words = int(word_N[-1]) + 1
        wanted = min(max(1, int(config.rate * words + extra[0])), words)
        chosen_W = np.zeros(words, dtype=bool)
        chosen_W[np.argsort(key_N[:words], kind="stable")[:wanted]] = True
        predicted_N = eligible_N & chosen_W[word_N]
        target_N = np.where(predicted_N, ids_N, PAD)
        source_N = ids_N.copy()
        source_N[predicted_N & (roll_N < config.masked)] = MASK
        swapped_N = predicted_N & (roll_N >= config.masked) & (roll_N < config.masked + config.random)
        source_N[swapped_N] = self.drawn[(draw_N[swapped_N] * len(self.drawn)).astype(np.int64)]
        return source_N, target_N


class MaskedBlocks:
    """The blocks of a split as `(index, source ids, target ids)`, masked for an epoch. `sizes_ND` counts the tokens."""

    def __init__(self, blocks: TokenBlocks, masking: Masking, *, epoch: int) -> None:
        self.blocks, self.masking, self.epoch = blocks, masking, epoch
        self.sizes_ND, self.truncated = blocks.sizes_ND, 0

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[int, Ids, Ids]:
        _, ids_N = self.blocks[index]  # the first id is context, which a masked model does not need
        return index, *self.masking(ids_N[1:], epoch=self.epoch, example=index)

    def for_epoch(self, epoch: int) -> "MaskedBlocks":
        """The same blocks, masked for another epoch."""
        return MaskedBlocks(self.blocks, self.masking, epoch=epoch)


_BEGINS: dict[str | None, Callable[[str], bool]] = {
    None: lambda token: True,
    "sentencepiece": lambda token: token.startswith(SPACE_PIECE),
    "bytes": lambda token: symbols.names_to_bytes([token]).isspace(),
    "characters": lambda token: symbols.names_to_characters([token]).isspace(),
    "@@ ": lambda token: False,
}
"""By kind of tokens: whether a token begins a word, whatever precedes it. White space begins the word after it."""


def word_flags(vocabulary: Vocabulary, tokenizer: Tokenizer) -> tuple[Flags, Flags]:
    """Returns begins_V, whether a token begins a word, and joins_V, whether the token after it may continue its word.

    Raises:
        UserError: If words cannot be told from tokens of this kind.
    """
    kind: Any = "sentencepiece" if tokenizer.model_bytes is not None else tokenizer.separator
    kind = "@@ " if kind == "subword_nmt" else kind
    if kind not in _BEGINS:
        raise UserError(f"task.masking.whole_words=true: tokens with the marker '{kind}' do not show whole words.")
    begins_V = np.array([_BEGINS[kind](token) for token in vocabulary.tokens])
    joins_V = np.array([kind is not None and (kind != "@@ " or token.endswith("@@")) for token in vocabulary.tokens])
    begins_V[: EOS + 1], joins_V[: EOS + 1] = True, False
    return begins_V, joins_V
