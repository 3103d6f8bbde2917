"""Applies banned tokens, forced tokens and penalties to the log-probabilities of a search step.

B rows of the batch, R partial hypotheses (several for each row), T tokens so far, V vocabulary, P prefix length.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from seqtk.data.vocabulary import EOS, PAD, UNK

BANNED = -torch.inf


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The constraints of a search. Each tensor has one row for each row of the batch."""

    never_N: Tensor
    """The tokens that are never produced. They include PAD."""
    unk_penalty: float
    min_B: Tensor
    """The minimum number of tokens before EOS."""
    max_B: Tensor
    """The maximum number of tokens before EOS."""
    no_repeat_ngram: int
    prefix_BP: Tensor | None

    def apply(self, log_p_RV: Tensor, *, tokens_RT: Tensor, row_R: Tensor) -> Tensor:
        """Applies the constraints to `log_p_RV` in place, and returns it.

        At positions of the prefix, only the prefix token is possible; at the maximum length, only EOS. Forced tokens
        keep the model's log-probability, and no ban or penalty applies to them.

        Args:
            log_p_RV: The log-probabilities of the next token.
            tokens_RT: The tokens so far.
            row_R: For each hypothesis, its row in the batch.
        """
        length = tokens_RT.shape[1]
        forced = self._forced(log_p_RV, length=length, row_R=row_R)
        if self.unk_penalty:
            log_p_RV[:, UNK] -= self.unk_penalty
        log_p_RV.index_fill_(1, self.never_N, BANNED)
        log_p_RV[:, EOS].masked_fill_(length < self.min_B[row_R], BANNED)
        if 0 < self.no_repeat_ngram <= length:
            ban_repeats(log_p_RV, tokens_RT, n=self.no_repeat_ngram)
        if forced is not None:
            token_R1, score_R1 = forced
            log_p_RV.masked_fill_(token_R1 != PAD, BANNED).scatter_(1, token_R1, score_R1)
        return log_p_RV

    def _forced(self, log_p_RV: Tensor, *, length: int, row_R: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns (token_R1, score_R1), the only possible next token of each hypothesis and its log-probability.

        The token is PAD, with the score of a banned token, if others are possible. None: no hypothesis has such a
        token. This is known without reading from the device.
        """
        in_prefix = self.prefix_BP is not None and length < self.prefix_BP.shape[1]
        if length < self._least_max and not in_prefix:
            return None
        prefix_R = self.prefix_BP[row_R, length] if self.prefix_BP is not None and in_prefix else PAD
        token_R1 = torch.where(length >= self.max_B[row_R], EOS, prefix_R)[:, None]
        return token_R1, log_p_RV.gather(1, token_R1).masked_fill(token_R1 == PAD, BANNED)

    @cached_property
    def _least_max(self) -> int:
        return int(self.max_B.min())


def ban_repeats(log_p_RV: Tensor, tokens_RT: Tensor, *, n: int) -> None:
    """Bans, in place, every token that would repeat an n-gram of its row."""
    length = tokens_RT.shape[1]
    grams_RGN = tokens_RT.unfold(1, n, 1)
    last_RN = tokens_RT[:, length - n + 1 :]
    same_RG = (grams_RGN[:, :, :-1] == last_RN[:, None]).all(dim=2)
    # PAD is always banned, so it can represent "no token".
    log_p_RV.scatter_(1, torch.where(same_RG, grams_RGN[:, :, -1], PAD), BANNED)
