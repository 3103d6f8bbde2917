"""Masking for masked language models (Devlin et al. 2019, BERT, section 3.1).

Masking is dynamic, as in RoBERTa: each epoch has new masks. A mask is a pure function of (seed, epoch, example), so
batches, worker processes and resuming do not change it. N tokens and W words of an example, V vocabulary.
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
"""The id of the mask token: `<s>`, which never occurs in texts, so that no token is added to the vocabulary."""
EVALUATION = 0
"""The epoch of validation and test splits, whose masks are the same in every run."""


@dataclass(frozen=True)
class MaskingConfig:
    """Settings of masking: which tokens are predicted, and what replaces them in the input."""

    rate: float = setting(0.15, above=0, at_most=1, help="Share of tokens (or whole words) that are predicted.")
    masked: float = setting(0.8, at_least=0, at_most=1, help="Share of predicted tokens that the mask token replaces.")
    random: float = setting(
        0.1, at_least=0, at_most=1, help="Share of predicted tokens that random tokens replace. The rest is unchanged."
    )
    whole_words: bool = setting(False, help="Whole word masking: predict all tokens of a word, or none.")
    seed: int = setting(1, at_least=0, at_most=2**63 - 1, help="Seed of the masks of the training text.")

    def check(self) -> None:
        """Raises UserError if `masked` + `random` is more than 1."""
        if self.masked + self.random > 1:
            raise UserError(
                f"The sum of task.masking.masked={self.masked} and task.masking.random={self.random} is more than 1.",
                "Lower one of them: they are shares of the predicted tokens.",
            )


class Masking:
    """Masks examples.

    Args:
        config: The settings.
        vocabulary: The vocabulary of random tokens. Special symbols (except UNK) and filler words are never chosen.
        tokenizer: The tokenizer, which determines the boundaries of words for `whole_words`.

    Raises:
        UserError: If `masked` + `random` is more than 1, or if word boundaries cannot be determined.
    """

    def __init__(self, config: MaskingConfig, *, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
        config.check()
        self.config = config
        excluded = {EOS, *vocabulary.never_generated}
        self.random_ids = np.array([id_ for id_ in range(len(vocabulary)) if id_ not in excluded], dtype=np.int64)
        self.begins_V: Flags = np.ones(len(vocabulary), dtype=bool)
        self.joins_V: Flags = np.zeros(len(vocabulary), dtype=bool)
        if config.whole_words:
            self.begins_V, self.joins_V = word_flags(vocabulary, tokenizer)

    def __call__(self, ids_N: Ids, *, epoch: int, example: int) -> tuple[Ids, Ids]:
        """Masks one example. At least one token is predicted.

        ⌊rate · W + u⌋ of W words are drawn without replacement, where u is uniform in [0, 1), so the expected share is
        `rate`. Each token of a drawn word is independently masked, replaced or kept. BOS, PAD and EOS are not
        predicted, unless the example has no other tokens.

        Args:
            ids_N: The tokens.
            epoch: The epoch, from 1, or EVALUATION.
            example: The index of the example.

        Returns:
            (source_N, the input of the model; target_N, which is PAD where nothing is predicted).
        """
        config, count = self.config, len(ids_N)
        seed = config.seed if epoch != EVALUATION else 0
        # NumPy guarantees the same random numbers in all versions, so that resumed runs have the same masks.
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
        source_N[swapped_N] = self.random_ids[(draw_N[swapped_N] * len(self.random_ids)).astype(np.int64)]
        return source_N, target_N


class MaskedBlocks:
    """The masked blocks of a split in one epoch. Example i is `(i, source ids, target ids)`."""

    def __init__(self, blocks: TokenBlocks, masking: Masking, *, epoch: int) -> None:
        self.blocks, self.masking, self.epoch = blocks, masking, epoch
        self.sizes_ND, self.truncated = blocks.sizes_ND, 0

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[int, Ids, Ids]:
        _, ids_N = self.blocks[index]  # the first id is context, which is not used here
        return index, *self.masking(ids_N[1:], epoch=self.epoch, example=index)

    def for_epoch(self, epoch: int) -> "MaskedBlocks":
        """Returns the same blocks with the masks of `epoch`."""
        return MaskedBlocks(self.blocks, self.masking, epoch=epoch)


_BEGINS: dict[str | None, Callable[[str], bool]] = {
    None: lambda token: True,
    "sentencepiece": lambda token: token.startswith(SPACE_PIECE),
    "bytes": lambda token: symbols.names_to_bytes([token]).isspace(),
    "characters": lambda token: symbols.names_to_characters([token]).isspace(),
    "@@ ": lambda token: False,
}
"""Maps kinds of tokens to functions that return True if a token begins a word. A space belongs to the next word."""


def word_flags(vocabulary: Vocabulary, tokenizer: Tokenizer) -> tuple[Flags, Flags]:
    """Returns (begins_V, True if a token begins a word; joins_V, True if the next token may continue its word).

    Raises:
        UserError: If word boundaries cannot be determined from the tokens.
    """
    kind: Any = "sentencepiece" if tokenizer.model_bytes is not None else tokenizer.separator
    kind = "@@ " if kind == "subword_nmt" else kind
    if kind not in _BEGINS:
        raise UserError(f"task.masking.whole_words=true does not support the subword marker '{kind}'.")
    begins_V = np.array([_BEGINS[kind](token) for token in vocabulary.tokens])
    joins_V = np.array([kind is not None and (kind != "@@ " or token.endswith("@@")) for token in vocabulary.tokens])
    begins_V[: EOS + 1], joins_V[: EOS + 1] = True, False
    return begins_V, joins_V
