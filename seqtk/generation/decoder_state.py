"""The texts that a search is writing: their tokens, and every model's state for them, which follows them.

R rows, T tokens so far, D width, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from seqtk.attention import State
from seqtk.data.batch import LanguageBatch, TranslationBatch, prompts
from seqtk.data.vocabulary import EOS
from seqtk.generation.length_limits import longest_target
from seqtk.models.base import Model


def rows_of(state: State, rows: slice) -> State:
    """Some rows of a state."""
    return tree_map(lambda leaf: None if leaf is None else leaf[rows], state)


class Rows:
    """R unfinished texts with their tokens, natural-log scores and states.

    A language model that can read no more goes on with the second half of what it has read.
    """

    def __init__(self, models: Sequence[Model], batch: TranslationBatch | LanguageBatch) -> None:
        rows, device = len(batch.ids_B), batch.ids_B.device
        self.states = [RowStates(model, batch) for model in models]
        self.tokens_RT = torch.empty(rows, 0, dtype=torch.long, device=device)
        self.scores_RT = torch.empty(rows, 0, device=device)
        self._longest = longest_target(models) if isinstance(batch, LanguageBatch) else None
        self._read = 0

    def next_log_probs(self, *, temperature: float) -> Tensor:
        """log_p_RV of the token after each row's last; several models are the mean of their probabilities."""
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
        """Make row i a copy of what was row `row_R[i]`."""
        self.tokens_RT, self.scores_RT = self.tokens_RT[row_R], self.scores_RT[row_R]
        for state in self.states:
            state.reorder(row_R, across_sentences=True)

    def advance(self, row_R: Tensor, token_R: Tensor, score_R: Tensor, *, across_sentences: bool) -> None:
        """Make row i what was row `row_R[i]`, with one more token; `across_sentences` unless i is of that sentence."""
        for state in self.states:
            state.reorder(row_R, across_sentences=across_sentences)
        self.tokens_RT = torch.cat([self.tokens_RT[row_R], token_R[:, None]], dim=1)
        self.scores_RT = torch.cat([self.scores_RT[row_R], score_R[:, None]], dim=1)


class RowStates:
    """One model with the state of every row.

    A leaf that every step so far has handed back untouched, as cross-attention does with the keys of its memory, is
    equal in all beams of a sentence. It need not be copied while beams only change places within their sentence.
    """

    def __init__(self, model: Model, batch: TranslationBatch | LanguageBatch) -> None:
        self.model = model
        self.state: State = model.start(batch)
        self._untouched = [True] * len(tree_flatten(self.state)[0])

    def step(self, token_R: Tensor, *, temperature: float) -> Tensor:
        """log_p_RV after each row has read its token."""
        before = [(leaf, _version(leaf)) for leaf in tree_flatten(self.state)[0]]
        features_R1D, self.state = self.model.step(token_R, self.state)
        after = tree_flatten(self.state)[0]
        if len(after) == len(before):
            pairs = zip(self._untouched, before, after, strict=True)
            self._untouched = [was and old is new and version == _version(new) for was, (old, version), new in pairs]
        else:
            self._untouched = [False] * len(after)
        return self.model.head.log_probs(features_R1D, temperature=temperature)[:, 0]

    def restart(self, read_RT: Tensor) -> None:
        """The state of a language model that has read these tokens and nothing before them."""
        self.state = self.model.start(prompts(read_RT))
        self._untouched = [False] * len(tree_flatten(self.state)[0])

    def reorder(self, row_R: Tensor, *, across_sentences: bool) -> None:
        """Make row i the continuation of what was row `row_R[i]`; `across_sentences` unless i is of that sentence."""
        if not across_sentences and torch.equal(row_R, torch.arange(len(row_R), device=row_R.device)):
            return
        leaves, tree = tree_flatten(self.state)
        self.state = tree_unflatten(
            [
                leaf if leaf is None or (untouched and not across_sentences) else leaf.index_select(0, row_R)
                for leaf, untouched in zip(leaves, self._untouched, strict=True)
            ],
            tree,
        )


def _version(leaf: Tensor | None) -> float:
    """A number that changes when the leaf is changed in place."""
    if leaf is None:
        return 0
    # Tensors made in inference mode do not count their changes; NaN is equal to nothing, so they pass for changed.
    return math.nan if leaf.is_inference() else leaf._version
