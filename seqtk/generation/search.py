"""Beam search over anything that can `step`: the n best translations of each row of a batch.

What is searched is what fairseq searches: `docs/decoding.md` states it.

B sentences still searched, W beams of each (1 before the first token, then K), K the width asked for, C = 2 K
candidates, R = B W rows, T tokens so far, V vocabulary, P length of the prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seqtk.data.batch import TranslationBatch
from seqtk.data.vocabulary import EOS
from seqtk.errors import UserError
from seqtk.generation.config import SearchConfig as SearchConfig
from seqtk.generation.constraints import Constraints
from seqtk.generation.limits import longest_target, most_tokens
from seqtk.generation.states import RowStates
from seqtk.models.base import Model


@dataclass(frozen=True)
class Hypothesis:
    """One translation: its ids, EOS at the end, with natural-log scores."""

    tokens: tuple[int, ...]
    score: float
    """Σ token_scores, divided by len(tokens)^length_penalty where scores are normalised."""
    token_scores: tuple[float, ...]


class HasNeverGenerated(Protocol):
    """What the search needs of a vocabulary."""

    @property
    def never_generated(self) -> list[int]:
        """The ids that no search may choose; PAD is one of them."""


@torch.no_grad()
def search(
    models: Sequence[Model],
    batch: TranslationBatch,
    config: SearchConfig,
    *,
    vocabulary: HasNeverGenerated,
    prefix_BP: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """For each row of `batch` its best hypotheses, best first: at most `nbest`, at least one.

    Several models are an ensemble, the mean of their probabilities. `prefix_BP`, padded with PAD, holds tokens that
    each target has to begin with. Of equal scores, that of the better beam, then that of the lower id, goes first.
    """
    config.check()
    if any(model.training for model in models):
        raise ValueError("search needs models in eval mode")
    beams = _Beams(models, batch, beam=config.beam)
    constraints = Constraints(
        never=vocabulary.never_generated,
        unk_penalty=config.unk_penalty,
        min_length=config.min_length,
        limit_B=most_tokens(
            batch.source_BS, a=config.max_length_a, b=config.max_length_b, longest=longest_target(models)
        ),
        no_repeat_ngram=config.no_repeat_ngram,
        prefix_BP=prefix_BP,
    )
    found: list[list[Hypothesis]] = [[] for _ in batch.source_BS]
    while len(beams.sentence_B):
        log_p_RV = beams.next_log_probs(temperature=config.temperature)
        constraints.apply(log_p_RV, tokens_RT=beams.tokens_RT, sentence_B=beams.sentence_B)
        candidates = beams.candidates(log_p_RV)
        for sentence, tokens, token_scores in beams.ended(candidates):
            if len(found[sentence]) < config.beam:
                found[sentence].append(_hypothesis(tokens, token_scores, config))
        beams.advance(candidates, open_B=[len(found[sentence]) < config.beam for sentence in beams.sentence_B.tolist()])
    return [_best(hypotheses, config.nbest) for hypotheses in found]


@dataclass(frozen=True)
class _Candidates:
    """The C best continuations of each sentence's beams, best first."""

    total_BC: Tensor
    """Σ log p with the new token; -inf where there are fewer than C continuations."""
    row_BC: Tensor
    """The row that is continued."""
    token_BC: Tensor
    score_BC: Tensor
    """log p of the new token."""

    def gather(self, index_BK: Tensor) -> "_Candidates":
        return _Candidates(*(x.gather(1, index_BK) for x in (self.total_BC, self.row_BC, self.token_BC, self.score_BC)))

    def select(self, sentences: Tensor) -> "_Candidates":
        return _Candidates(*(x[sentences] for x in (self.total_BC, self.row_BC, self.token_BC, self.score_BC)))


class _Beams:
    """The unfinished hypotheses of the sentences that are still searched."""

    def __init__(self, models: Sequence[Model], batch: TranslationBatch, *, beam: int) -> None:
        device = batch.source_BS.device
        rows = len(batch.source_BS)
        self.beam = beam
        self.states = [RowStates(model, batch) for model in models]
        self.sentence_B = torch.arange(rows, device=device)
        """Which row of the batch each sentence is."""
        self.tokens_RT = torch.empty(rows, 0, dtype=torch.long, device=device)
        self.scores_RT = torch.empty(rows, 0, device=device)
        self.total_BW = torch.zeros(rows, 1, device=device)

    def next_log_probs(self, *, temperature: float) -> Tensor:
        """log_p_RV of the token after each row's last."""
        # The first token a decoder reads is EOS, as in training.
        rows = len(self.tokens_RT)
        last_R = self.tokens_RT[:, -1] if self.tokens_RT.shape[1] else self.sentence_B.new_full((rows,), EOS)
        each = [state.step(last_R, temperature=temperature) for state in self.states]
        if len(each) == 1:
            return each[0]
        return torch.stack(each).logsumexp(dim=0) - torch.tensor(float(len(each))).log()

    def candidates(self, log_p_RV: Tensor) -> _Candidates:
        sentences, beams = self.total_BW.shape
        vocabulary = log_p_RV.shape[1]
        total_BN = (log_p_RV.view(sentences, beams, vocabulary) + self.total_BW[:, :, None]).flatten(1)
        total_BC, index_BC = best(total_BN, count=2 * self.beam)
        if total_BC.isnan().any():
            raise UserError(
                "The model's log-probabilities are not numbers (NaN).",
                "Its weights come from a training that diverged, or precision=bf16 is not enough for it.",
            )
        first_row_B1 = torch.arange(sentences, device=log_p_RV.device)[:, None] * beams
        row_BC = first_row_B1 + index_BC // vocabulary
        token_BC = index_BC % vocabulary
        return _Candidates(total_BC, row_BC, token_BC, log_p_RV[row_BC, token_BC])

    def ended(self, candidates: _Candidates) -> Iterator[tuple[int, list[int], list[float]]]:
        """The row of the batch, the tokens and their scores of each hypothesis that ends now: EOS among the K best."""
        ends_BC = (candidates.token_BC == EOS) & candidates.total_BC.isfinite()
        sentence_N, rank_N = ends_BC[:, : self.beam].nonzero(as_tuple=True)
        if not len(sentence_N):
            return
        row_N = candidates.row_BC[sentence_N, rank_N]
        last_N1 = candidates.score_BC[sentence_N, rank_N][:, None]
        scores_NT = torch.cat([self.scores_RT[row_N], last_N1], dim=1)
        yield from zip(
            self.sentence_B[sentence_N].tolist(), self.tokens_RT[row_N].tolist(), scores_NT.tolist(), strict=True
        )

    def advance(self, candidates: _Candidates, *, open_B: list[bool]) -> None:
        """Go on with the K best candidates that do not end, in the sentences that are open and have such a one."""
        ends_BC = (candidates.token_BC == EOS) & candidates.total_BC.isfinite()
        # A stable sort of "does it end" leaves those that do not in front and in their order.
        chosen = candidates.gather(ends_BC.byte().sort(dim=1, stable=True).indices[:, : self.beam])
        goes_on_B = torch.tensor(open_B, device=ends_BC.device) & chosen.total_BC[:, 0].isfinite()
        left = goes_on_B.nonzero().squeeze(1)
        fewer = len(left) < len(self.sentence_B)
        if fewer:
            chosen = chosen.select(left)
            self.sentence_B = self.sentence_B[left]
        widened = self.total_BW.shape[1] != self.beam
        row_R = chosen.row_BC.flatten()
        for state in self.states:
            state.reorder(row_R, across_sentences=fewer or widened)
        self.tokens_RT = torch.cat([self.tokens_RT[row_R], chosen.token_BC.reshape(-1, 1)], dim=1)
        self.scores_RT = torch.cat([self.scores_RT[row_R], chosen.score_BC.reshape(-1, 1)], dim=1)
        self.total_BW = chosen.total_BC


def best(scores_BN: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and where they are, largest first; of equals, the first in the row goes first.

    Where a row has fewer, -inf fills up. `topk` alone leaves open which of equals it takes.
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


def _hypothesis(tokens: list[int], token_scores: list[float], config: SearchConfig) -> Hypothesis:
    total = sum(token_scores)
    score = total / len(token_scores) ** config.length_penalty if config.normalize_scores else total
    return Hypothesis(tokens=(*tokens, EOS), score=score, token_scores=tuple(token_scores))


def _best(hypotheses: list[Hypothesis], nbest: int) -> list[Hypothesis]:
    if not hypotheses:
        # Every token was banned before the first hypothesis could end: nothing is what can be said.
        return [Hypothesis(tokens=(EOS,), score=-torch.inf, token_scores=(-torch.inf,))]
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[:nbest]
