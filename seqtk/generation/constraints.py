"""Applies banned tokens, forced tokens and penalties to the log-probabilities of a search step.

B rows of the batch, R partial hypotheses (several for each row), T tokens so far, V vocabulary, P prefix length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.data.vocabulary import EOS, PAD, UNK

BANNED = -torch.inf


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The constraints of a search. Each tensor has one row for each row of the batch."""

    never: list[int]
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
        at_maximum_R = length >= self.max_B[row_R]
        forced_R = torch.where(at_maximum_R, EOS, self._prefix_tokens(row_R, length))
        score_R1 = log_p_RV.gather(1, forced_R[:, None])
        if self.unk_penalty:
            log_p_RV[:, UNK] -= self.unk_penalty
        log_p_RV[:, self.never] = BANNED
        log_p_RV[length < self.min_B[row_R], EOS] = BANNED
        if 0 < self.no_repeat_ngram <= length:
            ban_repeats(log_p_RV, tokens_RT, n=self.no_repeat_ngram)
        rows_N = (forced_R != PAD).nonzero().squeeze(1)
        if len(rows_N):
            log_p_RV[rows_N] = BANNED
            log_p_RV[rows_N, forced_R[rows_N]] = score_R1[rows_N, 0]
        return log_p_RV

    def _prefix_tokens(self, row_R: Tensor, length: int) -> Tensor:
        """Returns token_R, the prefix token at this position, or PAD if there is none."""
        if self.prefix_BP is None or length >= self.prefix_BP.shape[1]:
            return torch.full_like(row_R, PAD)
        return self.prefix_BP[row_R, length]


def ban_repeats(log_p_RV: Tensor, tokens_RT: Tensor, *, n: int) -> None:
    """Bans, in place, every token that would repeat an n-gram of its row."""
    length = tokens_RT.shape[1]
    grams_RGN = tokens_RT.unfold(1, n, 1)
    last_RN = tokens_RT[:, length - n + 1 :]
    same_RG = (grams_RGN[:, :, :-1] == last_RN[:, None]).all(dim=2)
    # PAD is always banned, so it can represent "no token".
    log_p_RV.scatter_(1, torch.where(same_RG, grams_RGN[:, :, -1], PAD), BANNED)
