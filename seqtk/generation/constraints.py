"""What a search may not write: bans, penalties and forced tokens, as edits of one step's log-probabilities.

B rows of the batch, R texts that are being written (some for each of these), T tokens so far, V vocabulary, P length of
the prefix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.data.vocabulary import EOS, PAD, UNK

BANNED = -torch.inf


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """All constraints of one search; the tensors keep the rows of the whole batch."""

    never: list[int]
    unk_penalty: float
    least_B: Tensor
    """Tokens before EOS, at least."""
    limit_B: Tensor
    """Tokens before EOS, at most."""
    no_repeat_ngram: int
    prefix_BP: Tensor | None

    def apply(self, log_p_RV: Tensor, *, tokens_RT: Tensor, row_R: Tensor) -> Tensor:
        """`log_p_RV`, edited in place, for the next token of `tokens_RT`; `row_R` says of which row each text is.

        A forced token keeps the model's own score and obeys no ban or penalty; at its limit a text can only end.
        """
        length = tokens_RT.shape[1]
        full_R = length >= self.limit_B[row_R]
        only_R = torch.where(full_R, EOS, self._forced(row_R, length))
        score_R1 = log_p_RV.gather(1, only_R[:, None])
        if self.unk_penalty:
            log_p_RV[:, UNK] -= self.unk_penalty
        log_p_RV[:, self.never] = BANNED
        log_p_RV[length < self.least_B[row_R], EOS] = BANNED
        if 0 < self.no_repeat_ngram <= length:
            ban_repeats(log_p_RV, tokens_RT, n=self.no_repeat_ngram)
        rows_N = (only_R != PAD).nonzero().squeeze(1)
        if len(rows_N):
            log_p_RV[rows_N] = BANNED
            log_p_RV[rows_N, only_R[rows_N]] = score_R1[rows_N, 0]
        return log_p_RV

    def _forced(self, row_R: Tensor, length: int) -> Tensor:
        """token_R that the prefix demands at this length, PAD where it demands none."""
        if self.prefix_BP is None or length >= self.prefix_BP.shape[1]:
            return torch.full_like(row_R, PAD)
        return self.prefix_BP[row_R, length]


def ban_repeats(log_p_RV: Tensor, tokens_RT: Tensor, *, n: int) -> None:
    """Ban, in place, every token that would make the last n tokens of a row occur in it twice."""
    length = tokens_RT.shape[1]
    grams_RGN = tokens_RT.unfold(1, n, 1)
    last_RN = tokens_RT[:, length - n + 1 :]
    same_RG = (grams_RGN[:, :, :-1] == last_RN[:, None]).all(dim=2)
    # PAD is banned anyway, so it stands for "nothing".
    log_p_RV.scatter_(1, torch.where(same_RG, grams_RGN[:, :, -1], PAD), BANNED)
