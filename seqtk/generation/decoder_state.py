"""Partial hypotheses of a search, with their tokens, scores and model states.

R rows, T tokens so far, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from seqtk.attention import State, StepState
from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.blocks import prompts
from seqtk.data.vocabulary import EOS
from seqtk.generation.length_limits import length_limit
from seqtk.models.base import Model


class PartialHypotheses:
    """R partial hypotheses: tokens, scores (log-probabilities in nats) and model states.

    When a language model has read its maximum number of tokens, its state is recomputed from the last half of the
    tokens.
    """

    def __init__(self, models: Sequence[Model], batch: TranslationBatch | LanguageBatch) -> None:
        rows, device = len(batch.ids_B), batch.ids_B.device
        self.states = [ModelState(model, batch) for model in models]
        self.tokens_RT = torch.empty(rows, 0, dtype=torch.long, device=device)
        self.scores_RT = torch.empty(rows, 0, device=device)
        self._longest = length_limit(models, "target") if isinstance(batch, LanguageBatch) else None
        self._read = 0

    def next_log_probs(self, *, temperature: float) -> Tensor:
        """Returns log_p_RV, the log-probabilities of the next token. An ensemble averages the models' probabilities."""
        # As in training, the first input of a decoder is EOS.
        read_RT = torch.nn.functional.pad(self.tokens_RT, (1, 0), value=EOS)
        if self._read == self._longest:
            self._read //= 2
            for state in self.states:
                state.restart(read_RT[:, -1 - self._read : -1])
        log_p_MRV = [state.step(read_RT[:, -1], temperature=temperature) for state in self.states]
        self._read += 1
        if len(log_p_MRV) == 1:
            return log_p_MRV[0]
        return torch.stack(log_p_MRV).logsumexp(dim=0) - torch.tensor(float(len(log_p_MRV))).log()

    def reorder(self, row_R: Tensor, *, across_sentences: bool) -> None:
        """Replaces row i by a copy of row `row_R[i]`.

        `across_sentences`: True if row i may become a copy of a row of a different sentence.
        """
        self.tokens_RT, self.scores_RT = self.tokens_RT[row_R], self.scores_RT[row_R]
        for state in self.states:
            state.reorder(row_R, across_sentences=across_sentences)

    def append(self, token_R: Tensor, score_R: Tensor) -> None:
        """Appends a token to each row, with its log-probability."""
        self.tokens_RT = torch.cat([self.tokens_RT, token_R[:, None]], dim=1)
        self.scores_RT = torch.cat([self.scores_RT, score_R[:, None]], dim=1)


class ModelState:
    """A model and its decoding state for all rows."""

    def __init__(self, model: Model, batch: TranslationBatch | LanguageBatch) -> None:
        self.model = model
        self.state: State = model.start(batch)

    def step(self, token_R: Tensor, *, temperature: float) -> Tensor:
        """Reads one token of each row. Returns log_p_RV, the log-probabilities of the next token."""
        features_R1D, self.state = self.model.step(token_R, self.state)
        return self.model.head.log_probs(features_R1D, temperature=temperature)[:, 0]

    def restart(self, read_RT: Tensor) -> None:
        """Recomputes the state of a language model, as if it had read only the tokens `read_RT`."""
        self.state = self.model.start(prompts(read_RT))

    def reorder(self, row_R: Tensor, *, across_sentences: bool) -> None:
        """Replaces row i by a copy of row `row_R[i]`.

        The static leaves of a `StepState`, such as the keys of the encoder output, are equal in all beams of a
        sentence, so they are copied only if `across_sentences` is true.
        """
        if not across_sentences and torch.equal(row_R, torch.arange(len(row_R), device=row_R.device)):
            return

        def select(state: State) -> State:
            return tree_map(lambda leaf: None if leaf is None else leaf.index_select(0, row_R), state)

        def reordered(node: Any) -> Any:
            if not isinstance(node, StepState):
                return select(node)
            static = select(node.static) if across_sentences else node.static
            return StepState(static, select(node.dynamic))

        self.state = tree_map(reordered, self.state, is_leaf=lambda node: isinstance(node, StepState))
