"""Unfinished hypotheses: their tokens, scores and model states.

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
from seqtk.generation.length_limits import longest_target
from seqtk.models.base import Model


class PartialHypotheses:
    """R unfinished hypotheses: tokens, natural-log scores and model states.

    When a language model reaches its maximum length, it restarts with the second half of the tokens as context.
    """

    def __init__(self, models: Sequence[Model], batch: TranslationBatch | LanguageBatch) -> None:
        rows, device = len(batch.ids_B), batch.ids_B.device
        self.states = [ModelState(model, batch) for model in models]
        self.tokens_RT = torch.empty(rows, 0, dtype=torch.long, device=device)
        self.scores_RT = torch.empty(rows, 0, device=device)
        self._longest = longest_target(models) if isinstance(batch, LanguageBatch) else None
        self._read = 0

    def next_log_probs(self, *, temperature: float) -> Tensor:
        """Returns log_p_RV of the next token of each row. An ensemble averages the probabilities of its models."""
        # The first token a decoder reads is EOS, as in training.
        read_RT = torch.nn.functional.pad(self.tokens_RT, (1, 0), value=EOS)
        if self._read == self._longest:
            self._read //= 2
            for state in self.states:
                state.restart(read_RT[:, -1 - self._read : -1])
        each = [state.step(read_RT[:, -1], temperature=temperature) for state in self.states]
        self._read += 1
        if len(each) == 1:
            return each[0]
        return torch.stack(each).logsumexp(dim=0) - torch.tensor(float(len(each))).log()

    def expand(self, row_R: Tensor) -> None:
        """Makes row i a copy of row `row_R[i]`."""
        self.tokens_RT, self.scores_RT = self.tokens_RT[row_R], self.scores_RT[row_R]
        for state in self.states:
            state.reorder(row_R, across_sentences=True)

    def advance(self, row_R: Tensor, token_R: Tensor, score_R: Tensor, *, across_sentences: bool) -> None:
        """Makes row i a copy of row `row_R[i]` with one more token.

        Args:
            row_R: The row that each new row continues.
            token_R: The token to append.
            score_R: The log-probability of the token.
            across_sentences: True if a row may continue a row of another sentence.
        """
        for state in self.states:
            state.reorder(row_R, across_sentences=across_sentences)
        self.tokens_RT = torch.cat([self.tokens_RT[row_R], token_R[:, None]], dim=1)
        self.scores_RT = torch.cat([self.scores_RT[row_R], score_R[:, None]], dim=1)


class ModelState:
    """One model and the decoding state of every row."""

    def __init__(self, model: Model, batch: TranslationBatch | LanguageBatch) -> None:
        self.model = model
        self.state: State = model.start(batch)

    def step(self, token_R: Tensor, *, temperature: float) -> Tensor:
        """Returns log_p_RV after each row has read its token."""
        features_R1D, self.state = self.model.step(token_R, self.state)
        return self.model.head.log_probs(features_R1D, temperature=temperature)[:, 0]

    def restart(self, read_RT: Tensor) -> None:
        """Replaces the state by that of a language model that has read only these tokens."""
        self.state = self.model.start(prompts(read_RT))

    def reorder(self, row_R: Tensor, *, across_sentences: bool) -> None:
        """Makes row i a copy of row `row_R[i]`.

        The static leaves of a `StepState`, such as the keys of the memory, are equal in all beams of a sentence, so
        they are copied only if `across_sentences`.
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
