"""Beam search for the n best hypotheses of each row of a batch.

It finds the same hypotheses as fairseq's beam search. `docs/decoding.md` describes the search.

B unfinished sentences, K beam width, W beams per sentence (1 before the first token, then K), R = B W rows, C = 2 K
candidates, N finished candidates, T tokens so far, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import EOS
from seqtk.generation.config import SearchConfig
from seqtk.generation.constraints import Constraints
from seqtk.generation.decoder_state import PartialHypotheses
from seqtk.generation.scoring import EMPTY, Hypothesis, check_not_nan, finish
from seqtk.models.base import Model


@torch.no_grad()
def beam_search(
    models: Sequence[Model], batch: TranslationBatch | LanguageBatch, config: SearchConfig, constraints: Constraints
) -> list[list[Hypothesis]]:
    """Returns the best hypotheses for each row of `batch`, best first: at least one, and at most `nbest`.

    Candidates with equal scores are ordered by the rank of their beam, then by token id.
    """
    beams = _Beams(models, batch, beam=config.width)
    found: list[list[Hypothesis]] = [[] for _ in batch.ids_B]
    while beams.sentences:
        log_p_RV = beams.rows.next_log_probs(temperature=config.temperature)
        constraints.apply(log_p_RV, tokens_RT=beams.rows.tokens_RT, row_R=beams.batch_rows())
        candidates = beams.candidates(log_p_RV)
        for sentence, tokens, token_scores in beams.finished(candidates):
            if len(found[sentence]) < config.width:
                found[sentence].append(finish(tokens, token_scores, config))
        beams.advance(candidates, open_B=[len(found[sentence]) < config.width for sentence in beams.sentences])
    return [_best(hypotheses, config.nbest) for hypotheses in found]


class _Candidates(NamedTuple):
    """The C best candidates of each sentence, best first. A candidate is a beam and the token that continues it."""

    total_BC: Tensor
    """Σ log p including the new token. If there are fewer than C candidates, the remaining entries are -inf."""
    row_BC: Tensor
    """The index of the beam that the candidate continues."""
    token_BC: Tensor
    score_BC: Tensor
    """log p of the new token."""

    def gather(self, index_BK: Tensor) -> "_Candidates":
        return _Candidates(*(x.gather(1, index_BK) for x in self))

    def select(self, sentences: Tensor) -> "_Candidates":
        return _Candidates(*(x[sentences] for x in self))


class _Beams:
    """The beams (partial hypotheses) of the unfinished sentences."""

    def __init__(self, models: Sequence[Model], batch: TranslationBatch | LanguageBatch, *, beam: int) -> None:
        self.beam = beam
        self.rows = PartialHypotheses(models, batch)
        self.sentences = list(range(len(batch.ids_B)))
        """For each sentence, its row in the batch."""
        self._sentence_B = torch.arange(len(batch.ids_B), device=batch.ids_B.device)
        self.total_BW = torch.zeros(len(batch.ids_B), 1, device=batch.ids_B.device)

    def batch_rows(self) -> Tensor:
        """Returns row_R: for each beam, the row of its sentence in the batch."""
        return self._sentence_B.repeat_interleave(self.total_BW.shape[1])

    def candidates(self, log_p_RV: Tensor) -> _Candidates:
        sentences, beams = self.total_BW.shape
        vocabulary = log_p_RV.shape[1]
        total_BN = (log_p_RV.view(sentences, beams, vocabulary) + self.total_BW[:, :, None]).flatten(1)
        total_BC, index_BC = best(total_BN, count=2 * self.beam)
        check_not_nan(total_BC)
        first_row_B1 = torch.arange(sentences, device=log_p_RV.device)[:, None] * beams
        row_BC = first_row_B1 + index_BC // vocabulary
        token_BC = index_BC % vocabulary
        return _Candidates(total_BC, row_BC, token_BC, log_p_RV[row_BC, token_BC])

    def finished(self, candidates: _Candidates) -> Iterator[tuple[int, list[int], list[float]]]:
        """Yields (batch row, tokens, token scores) of each candidate that ends in EOS and is one of the K best."""
        ends_BC = (candidates.token_BC == EOS) & candidates.total_BC.isfinite()
        sentence_N, rank_N = ends_BC[:, : self.beam].nonzero(as_tuple=True)
        if not len(sentence_N):
            return
        row_N = candidates.row_BC[sentence_N, rank_N]
        last_N1 = candidates.score_BC[sentence_N, rank_N][:, None]
        scores_NT = torch.cat([self.rows.scores_RT[row_N], last_N1], dim=1)
        sentences = [self.sentences[number] for number in sentence_N.tolist()]
        yield from zip(sentences, self.rows.tokens_RT[row_N].tolist(), scores_NT.tolist(), strict=True)

    def advance(self, candidates: _Candidates, *, open_B: list[bool]) -> None:
        """Replaces the beams by the K best unfinished candidates.

        Removes sentences that have enough hypotheses or no unfinished candidates.

        Args:
            candidates: The candidates of this step.
            open_B: For each sentence, True if it needs more hypotheses.
        """
        ends_BC = (candidates.token_BC == EOS) & candidates.total_BC.isfinite()
        # A stable sort by `ends` moves unfinished candidates to the front and keeps their order.
        chosen = candidates.gather(ends_BC.byte().sort(dim=1, stable=True).indices[:, : self.beam])
        continues_B = chosen.total_BC[:, 0].isfinite().tolist()
        left = [number for number, flags in enumerate(zip(open_B, continues_B, strict=True)) if all(flags)]
        fewer = len(left) < len(self.sentences)
        if fewer:
            self.sentences = [self.sentences[number] for number in left]
            left_B = torch.tensor(left, dtype=torch.long, device=ends_BC.device)
            chosen, self._sentence_B = chosen.select(left_B), self._sentence_B[left_B]
        widened = self.total_BW.shape[1] != self.beam
        if self.beam > 1 or fewer:
            self.rows.reorder(chosen.row_BC.flatten(), across_sentences=fewer or widened)
        self.rows.append(chosen.token_BC.flatten(), chosen.score_BC.flatten())
        self.total_BW = chosen.total_BC


def best(scores_BN: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` largest values of each row, largest first, and their indices.

    Equal values keep their order, which `torch.topk` does not guarantee. Rows with fewer values are padded with -inf.
    """
    size = scores_BN.shape[1]
    values, indices = scores_BN.topk(min(count + 1, size), dim=1)
    if size > count:
        tied_B = (values[:, count - 1] == values[:, count]) & values[:, count].isfinite()
        if tied_B.any():
            everything = scores_BN[tied_B].sort(dim=1, descending=True, stable=True)
            values[tied_B] = everything.values[:, : count + 1]
            indices[tied_B] = everything.indices[:, : count + 1]
        values, indices = values[:, :count], indices[:, :count]
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    missing = (0, max(0, count - size))
    return (
        torch.nn.functional.pad(values, missing, value=-torch.inf),
        torch.nn.functional.pad(indices.gather(1, order), missing),
    )


def _best(hypotheses: list[Hypothesis], nbest: int) -> list[Hypothesis]:
    if not hypotheses:  # all tokens were banned before any hypothesis was finished
        return [EMPTY]
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[:nbest]
